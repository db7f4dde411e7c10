#include "eval/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <set>

namespace proa {
namespace {

using nlohmann::ordered_json;

template <typename... Args>
std::string format(const char* pattern, Args... args) {
  char text[512];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

std::string percent(double share, int digits = 1) { return format("%.*f", digits, 100 * share); }

// Aligned columns: the first to the left, the others to the right.
std::string aligned(const std::vector<std::vector<std::string>>& lines) {
  const auto width = [](const std::string& text) {  // characters of UTF-8
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
  };
  std::vector<size_t> widths;
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) {
      if (i == widths.size()) widths.push_back(0);
      widths[i] = std::max(widths[i], width(line[i]));
    }
  }
  std::string out;
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) {
      const std::string gap(widths[i] - width(line[i]), ' ');
      out += i == 0 ? line[i] + gap : "  " + gap + line[i];
    }
    while (out.ends_with(' ')) out.pop_back();
    out += '\n';
  }
  return out;
}

ordered_json json_of(const std::map<std::string, EvalCell>& cells) {
  ordered_json json = ordered_json::object();
  for (const auto& [name, cell] : cells) {
    const Interval interval = wilson(cell.right, cell.count);
    json[name] = {{"questions", cell.count},
                  {"right", cell.right},
                  {"exact", cell.count ? static_cast<double>(cell.right) / static_cast<double>(cell.count) : 0},
                  {"interval95", {interval.low, interval.high}}};
  }
  return json;
}

ordered_json json_of(const Likelihood& l, bool is_base) {
  ordered_json json = {
      {"positions", l.positions}, {"nll", l.mean_nll}, {"perplexity", std::exp(l.mean_nll)}, {"seconds", l.seconds}};
  if (is_base) return json;
  json["kl"] = l.mean_kl;
  json["kl_standard_error"] = l.kl_error;
  json["kl_max"] = l.max_kl;
  json["top1_agreement"] = l.top1;
  return json;
}

std::string escape(const std::string& words) {
  std::string out;
  for (const char c : words) {
    out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : c == '"' ? "&quot;" : std::string(1, c);
  }
  return out;
}

}  // namespace

std::string EvalRow::name() const {
  std::string label = std::filesystem::path(model).filename().string();
  if (label.empty()) label = model;
  if (!activation_dtype.empty()) label += ", activations " + activation_dtype;
  if (!kv_cache_dtype.empty()) label += ", KV " + kv_cache_dtype;
  if (!ssm_cache_dtype.empty() && ssm_cache_dtype != "float32") label += ", state " + ssm_cache_dtype;
  return label;
}

int64_t EvalRow::num_right() const { return std::count(right.begin(), right.end(), true); }

std::map<std::string, EvalCell> majority_answers(std::span<const Question> questions) {
  std::map<std::pair<std::string, std::string>, std::map<std::string, int64_t>> cells;
  for (const Question& q : questions) ++cells[{q.kind, q.language}][q.answers.front()];
  std::map<std::string, EvalCell> out;
  for (const auto& [key, answers] : cells) {
    int64_t most = 0, count = 0;
    for (const auto& [answer, times] : answers) most = std::max(most, times), count += times;
    out[key.first].count += count;
    out[key.first].right += most;
  }
  return out;
}

void count_answers(std::span<const Question> questions, const AnswerPass& pass, EvalRow& row) {
  row.seconds = pass.seconds;
  row.prompt_tokens = pass.stats.prompt_tokens;
  row.computed_tokens = pass.stats.computed_tokens;
  row.drawn_tokens = pass.stats.drawn_tokens;
  for (size_t i = 0; i < questions.size(); ++i) {
    const bool right = pass.answers[i].right;
    row.right.push_back(right);
    row.cut += pass.answers[i].cut;
    const auto count = [&](EvalCell& cell) { ++cell.count, cell.right += right; };
    const Question& q = questions[i];
    count(row.by_kind[q.kind]);
    count(row.by_language[q.language]);
    count(row.by_cell[q.kind + "/" + q.language]);
    if (q.unseen_phrasing) count(row.by_cell["unseen phrasings"]);
  }
}

Paired paired(const EvalReport& report, size_t i) {
  Paired out;
  const auto &first = report.rows.front().right, &second = report.rows[i].right;
  out.count = static_cast<int64_t>(std::min(first.size(), second.size()));
  for (size_t q = 0; q < static_cast<size_t>(out.count); ++q) {
    out.only_first += first[q] && !second[q];
    out.only_second += !first[q] && second[q];
  }
  return out;
}

std::string to_table(const EvalReport& report) {
  if (report.rows.empty()) return "";
  const bool answers = !report.rows.front().right.empty();
  const bool several = report.rows.size() > 1;
  std::vector<std::vector<std::string>> lines(1);
  lines[0] = {"model"};
  const auto head = [&](std::initializer_list<const char*> names) {
    lines[0].insert(lines[0].end(), names.begin(), names.end());
  };
  head({"MB"});
  if (answers) head({"right %", "95 %", "questions/s"});
  if (answers && several) head({"kept %", "lost", "won", "difference %", "p"});
  const bool likelihood = report.rows.front().answers.has_value(), text = report.rows.front().text.has_value();
  if (likelihood) head({"answer ppl"});
  if (likelihood && several) head({"answer KL", "top-1 %"});
  if (text) head({"text ppl"});
  if (text && several) head({"text KL", "top-1 %"});
  for (size_t i = 0; i < report.rows.size(); ++i) {
    const EvalRow& row = report.rows[i];
    std::vector<std::string> line = {row.name(), format("%.1f", static_cast<double>(row.weight_bytes) / 1e6)};
    const auto add = [&](std::string cell) { line.push_back(std::move(cell)); };
    if (answers) {
      const auto count = static_cast<int64_t>(row.right.size());
      const Interval w = wilson(row.num_right(), count);
      add(percent(count ? static_cast<double>(row.num_right()) / static_cast<double>(count) : 0, 2));
      add(percent(w.low) + ".." + percent(w.high));
      add(row.seconds > 0 ? format("%.1f", static_cast<double>(count) / row.seconds) : "");
      if (several) {
        const Paired p = paired(report, i);
        const Interval d = p.interval();
        const auto base = report.rows.front().num_right();
        const bool first = i == 0;
        add(base ? percent(static_cast<double>(row.num_right()) / static_cast<double>(base), 2) : "");
        add(first ? "" : std::to_string(p.only_first));
        add(first ? "" : std::to_string(p.only_second));
        add(first ? "" : format("%+.2f (%+.2f..%+.2f)", 100 * p.difference(), 100 * d.low, 100 * d.high));
        add(first ? "" : format("%.2g", p.p_value()));
      }
    }
    for (const auto& [wanted, l] : {std::pair(likelihood, &row.answers), std::pair(text, &row.text)}) {
      if (!wanted) continue;
      add(*l ? format("%.5g", std::exp((*l)->mean_nll)) : "");
      if (several)
        add(i == 0 || !*l ? "" : format("%.2g", (*l)->mean_kl)), add(i == 0 || !*l ? "" : percent((*l)->top1, 2));
    }
    lines.push_back(std::move(line));
  }
  std::string out = aligned(lines);
  if (!answers) return out;
  lines.assign(1, {"kind", "n"});
  for (size_t i = 0; i < report.rows.size(); ++i) lines[0].push_back("[" + std::to_string(i + 1) + "]");
  lines[0].push_back("majority %");
  const auto add = [&](const std::string& name, const std::map<std::string, EvalCell> EvalRow::*group,
                       const std::string& key) {
    const auto& first = report.rows.front().*group;
    if (!first.contains(key)) return;
    std::vector<std::string> line = {name, std::to_string(first.at(key).count)};
    for (const EvalRow& row : report.rows) {
      const auto cell = (row.*group).find(key);
      const bool has = cell != (row.*group).end() && cell->second.count > 0;
      line.push_back(has ? percent(static_cast<double>(cell->second.right) / static_cast<double>(cell->second.count))
                         : "");
    }
    const auto majority = report.majority.find(key);
    if (group == &EvalRow::by_kind && majority != report.majority.end() && majority->second.count) {
      line.push_back(
          percent(static_cast<double>(majority->second.right) / static_cast<double>(majority->second.count)));
    }
    lines.push_back(std::move(line));
  };
  for (const auto& [kind, cell] : report.rows.front().by_kind)
    add(kind.empty() ? "all" : kind, &EvalRow::by_kind, kind);
  if (report.rows.front().by_language.size() > 1) {
    for (const auto& [language, cell] : report.rows.front().by_language) add(language, &EvalRow::by_language, language);
  }
  add("unseen phrasings", &EvalRow::by_cell, "unseen phrasings");
  out += "\n" + aligned(lines);
  for (size_t i = 0; several && i < report.rows.size(); ++i) {
    out += "[" + std::to_string(i + 1) + "] " + report.rows[i].name() + "\n";
  }
  return out;
}

ordered_json to_json(const EvalReport& report) {
  ordered_json json = {{"machine", report.machine}, {"questions", report.questions}, {"text", report.text}};
  json["interrupted"] = report.interrupted;
  json["majority"] = json_of(report.majority);
  json["rows"] = ordered_json::array();
  for (size_t i = 0; i < report.rows.size(); ++i) {
    const EvalRow& row = report.rows[i];
    ordered_json out = {{"name", row.name()},
                        {"model", row.model},
                        {"weights", row.weights},
                        {"weight_bytes", row.weight_bytes},
                        {"activation_dtype", row.activation_dtype.empty() ? "auto" : row.activation_dtype},
                        {"kv_cache_dtype", row.kv_cache_dtype},
                        {"mamba_ssm_cache_dtype", row.ssm_cache_dtype},
                        {"arithmetic", row.arithmetic}};
    if (!row.right.empty()) {
      const auto count = static_cast<int64_t>(row.right.size());
      const Interval w = wilson(row.num_right(), count);
      out["questions"] = count;
      out["right"] = row.num_right();
      out["exact"] = static_cast<double>(row.num_right()) / static_cast<double>(count);
      out["interval95"] = {w.low, w.high};
      out["without_end"] = row.cut;
      out["seconds"] = row.seconds;
      out["questions_per_second"] = row.seconds > 0 ? static_cast<double>(count) / row.seconds : 0;
      out["prompt_tokens"] = row.prompt_tokens;
      out["computed_tokens"] = row.computed_tokens;
      out["drawn_tokens"] = row.drawn_tokens;
      if (i > 0) {
        const Paired p = paired(report, i);
        const Interval d = p.interval();
        const auto base = report.rows.front().num_right();
        out["beside_first"] = {{"kept", base ? static_cast<double>(row.num_right()) / static_cast<double>(base) : 0},
                               {"only_first_right", p.only_first},
                               {"only_this_right", p.only_second},
                               {"difference", p.difference()},
                               {"difference_interval95", {d.low, d.high}},
                               {"mcnemar_p", p.p_value()}};
      }
      out["by_kind"] = json_of(row.by_kind);
      out["by_language"] = json_of(row.by_language);
      out["by_kind_and_language"] = json_of(row.by_cell);
    }
    if (row.answers) out["answers"] = json_of(*row.answers, i == 0);
    if (row.text) out["text"] = json_of(*row.text, i == 0);
    json["rows"].push_back(std::move(out));
  }
  return json;
}

std::string plot_svg(const EvalReport& report) {
  if (report.rows.empty() || report.rows.front().right.empty()) return "";
  double least = 1, most = 0;
  for (const EvalRow& row : report.rows) {
    const Interval w = wilson(row.num_right(), static_cast<int64_t>(row.right.size()));
    least = std::min(least, w.low);
    most = std::max(most, w.high);
  }
  const double span = std::max(most - least, 0.01);
  const double step = span > 0.5 ? 0.1 : span > 0.2 ? 0.05 : span > 0.08 ? 0.02 : span > 0.03 ? 0.01 : 0.005;
  const double low = std::max(0.0, std::floor(least / step) * step),
               high = std::min(1.0, std::ceil(most / step) * step);
  const double left = 250, right = 560, top = 76, line = 30;
  const double height = top + line * static_cast<double>(report.rows.size()) + 56, width = 860;
  const auto x = [&](double share) { return left + (share - low) / (high - low) * (right - left); };
  std::string svg = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
      "height=\"%.0f\" role=\"img\">\n",
      width, height, width, height);
  svg +=
      "<title>right answers by precision</title>\n"
      "<style>svg{background:#fff;font-family:system-ui,-apple-system,'Segoe UI',sans-serif}text{fill:#24292f;"
      "font-size:12px}.title{font-size:16px;font-weight:600}.note{fill:#656d76;font-size:11px}.grid{stroke:#d8dee4}"
      ".base{stroke:#d9730d;stroke-dasharray:4 3}.dot{fill:#2a78d6}.bar{stroke:#2a78d6;stroke-width:2}"
      "@media (prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.note{fill:#9198a1}"
      ".grid{stroke:#2b313a}}</style>\n";
  const auto text = [&](double at, double y, const std::string& words, const char* attributes = "") {
    svg += format("<text x=\"%.1f\" y=\"%.1f\" %s>", at, y, attributes) + escape(words) + "</text>\n";
  };
  text(20, 28, "Right answers, " + std::to_string(report.rows.front().right.size()) + " questions", "class=\"title\"");
  text(20, 46, report.questions + "; bars: 95 % by Wilson", "class=\"note\"");
  text(right + 20, top - 12, "of the first", "class=\"note\"");
  const bool likelihood = report.rows.front().answers.has_value();
  if (likelihood) {
    text(right + 110, top - 12, "KL, nats", "class=\"note\"");
    text(right + 190, top - 12, "top-1", "class=\"note\"");
  }
  const double bottom = top + line * static_cast<double>(report.rows.size());
  for (double tick = low; tick <= high + step / 2; tick += step) {
    svg += format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n", x(tick), top, x(tick),
                  bottom);
    text(x(tick), bottom + 16, percent(tick, step < 0.01 ? 1 : 0) + " %", "text-anchor=\"middle\" class=\"note\"");
  }
  const auto n0 = static_cast<double>(report.rows.front().right.size());
  const double base = static_cast<double>(report.rows.front().num_right()) / n0;
  svg +=
      format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"base\"/>\n", x(base), top, x(base), bottom);
  for (size_t i = 0; i < report.rows.size(); ++i) {
    const EvalRow& row = report.rows[i];
    const double y = top + line * (static_cast<double>(i) + 0.5);
    const auto count = static_cast<int64_t>(row.right.size());
    const double share = static_cast<double>(row.num_right()) / static_cast<double>(count);
    const Interval w = wilson(row.num_right(), count);
    text(left - 12, y + 4, row.name(), "text-anchor=\"end\"");
    svg += format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"bar\"/>\n", x(w.low), y, x(w.high), y);
    svg += format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\" class=\"dot\"><title>%s %%</title></circle>\n", x(share),
                  y, percent(share, 2).c_str());
    text(right + 20, y + 4, i == 0 ? percent(share, 2) + " %" : percent(base > 0 ? share / base : 0, 2) + " %");
    if (likelihood && i > 0 && row.answers) {
      text(right + 110, y + 4, format("%.2g", row.answers->mean_kl));
      text(right + 190, y + 4, percent(row.answers->top1, 2) + " %");
    }
  }
  const auto of = [&](const char* key) {
    return report.machine.contains(key) && report.machine[key].is_string() ? report.machine[key].get<std::string>()
                                                                           : "";
  };
  text(20, height - 14,
       of("cpu_model") + " " + of("description") + ", proa " + of("version") + " " + of("commit") + ", " +
           of("date").substr(0, 10),
       "class=\"note\"");
  return svg + "</svg>\n";
}

}  // namespace proa
