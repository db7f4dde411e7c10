#include "eval/long_context.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace proa {
namespace {

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int below(int n) { return static_cast<int>(next() % static_cast<uint64_t>(n)); }
  double uniform(double low, double high) { return low + (high - low) * (static_cast<double>(next() >> 11) * 0x1p-53); }

 private:
  uint64_t state_;
};

template <typename... Args>
std::string format(const char* pattern, Args... args) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

constexpr int kDay = 1440;   // minutes
constexpr int kLimit = 120;  // m of position offset

struct Reading {
  int minute, pos;
  double hs, tp, wind, sst, air, baro, bat;
};

std::string clock(int minute) { return format("%02d:%02d", minute / 60 % 24, minute % 60); }

std::string line(const Reading& r) {
  return clock(r.minute) + format(" pos%03d hs%04.1f tp%04.1f wind%04.1f sst%04.1f air%04.1f baro%06.1f bat%04.1f\n",
                                  r.pos, r.hs, r.tp, r.wind, r.sst, r.air, r.baro, r.bat);
}

double tenths(double x) { return std::round(x * 10) / 10; }

// Weather that wanders; one decimal, as it is printed.
std::vector<Reading> readings(int count, Random& random) {
  std::vector<Reading> out;
  Reading r{0, 45, 1.8, 7.4, 9.5, 16.2, 15.1, 1009.4, 12.4};
  for (int i = 0; i < count; ++i) {
    const auto walk = [&](double x, double step, double low, double high) {
      return tenths(std::clamp(x + random.uniform(-step, step), low, high));
    };
    r.pos = std::clamp(r.pos + random.below(15) - 7, 20, kLimit - 15);
    r.hs = walk(r.hs, 0.3, 0.5, 2.7);
    r.tp = walk(r.tp, 0.4, 5, 9.9);
    r.wind = walk(r.wind, 1.2, 2, 15.9);
    r.sst = walk(r.sst, 0.1, 12, 20);
    r.air = walk(r.air, 0.3, 8, 22);
    r.baro = walk(r.baro, 0.4, 995, 1025);
    r.bat = walk(r.bat, 0.1, 12, 13);
    out.push_back(r);
  }
  return out;
}

std::vector<Question> buoy(const LongContext& what, const std::function<size_t(const std::string&)>& count_tokens) {
  Random random(what.seed);
  std::string sample;
  for (const Reading& r : readings(64, random)) sample += line(r);
  const double per_reading = static_cast<double>(count_tokens(sample)) / 64;
  const int count = std::max(12, static_cast<int>((static_cast<double>(what.tokens) - 150) / per_reading));
  // Within a day every time occurs once; a longer window has even minutes again and again, and the odd ones that are
  // asked for once.
  int step = 1;
  for (const int wanted : {10, 5, 2, 1}) {
    if (count * wanted <= kDay) {
      step = wanted;
      break;
    }
  }
  const bool repeats = count > kDay;
  if (repeats) step = 2;
  std::vector<Reading> all = readings(count, random);
  for (int i = 0; i < count; ++i) all[static_cast<size_t>(i)].minute = i * step % kDay;

  std::vector<std::pair<std::string, std::string>> asked;  // question, answer
  std::vector<int> depths;
  for (int n = 0; n < what.needles; ++n) {
    const int at = static_cast<int>((n + 0.5) / what.needles * count);
    Reading& r = all[static_cast<size_t>(at)];
    // In a window of several days neighbours of a needle are even minutes, so its own is new.
    if (repeats) r.minute = (r.minute + 1 + 2 * 60 * n) % kDay;
    asked.emplace_back("What was the wind at " + clock(r.minute) + "?",
                       "Wind at " + clock(r.minute) + format(": %.1f m/s.", r.wind));
    depths.push_back(at * 100 / count);
  }
  std::string text = format("Buoy Marova Bank, 35.42N 139.81E, 2032-01-23, %d readings every %d min\n", count, step);
  text += "units pos m hs m tp s wind m/s sst °C air °C baro hPa bat V\n";
  text += "limits pos>=120 hs>=03.0 wind>=17.0 baro<0990.0 bat<11.8\n";

  std::vector<Question> out;
  const auto add = [&](const std::string& body, const std::string& kind, const std::string& id,
                       const std::string& question, const std::string& answer, size_t group) {
    Question q{.id = id, .kind = kind + " " + token_count_text(what.tokens), .language = "en"};
    q.messages = nlohmann::ordered_json::array({{{"role", "user"}, {"content", text + body + "\n" + question}}});
    q.answers = {answer};
    q.group = group;
    out.push_back(std::move(q));
  };
  std::string body;
  for (const Reading& r : all) body += line(r);
  for (size_t n = 0; n < asked.size(); ++n) {
    add(body, "needle", std::to_string(what.tokens) + "/needle/" + std::to_string(depths[n]) + "%", asked[n].first,
        asked[n].second, what.group);
  }
  // Counts of several sizes, each in a window of its own: readings off position somewhere in it.
  for (int n = 0; n < what.counts; ++n) {
    std::vector<Reading> copy = all;
    const int off = 1 + 2 * n;
    for (int i = 0; i < off; ++i) {
      const int at = static_cast<int>((i + random.uniform(0.2, 0.8)) / off * count);
      copy[static_cast<size_t>(std::min(at, count - 1))].pos = kLimit + 5 + random.below(40);
    }
    std::string other;
    for (const Reading& r : copy) other += line(r);
    add(other, "count", std::to_string(what.tokens) + "/count/" + std::to_string(off),
        "Count the position offset readings in alarm.", format("Position offset ≥ %d m: %d readings.", kLimit, off),
        what.group + 1 + static_cast<size_t>(n));
  }
  return out;
}

constexpr const char* kCities[] = {"Osaka",  "Bergen", "Lima",   "Porto",  "Nairobi", "Quito",   "Hobart", "Tromso",
                                   "Muscat", "Dakar",  "Cebu",   "Galway", "Lagos",   "Tallinn", "Busan",  "Valdivia",
                                   "Darwin", "Havana", "Gdansk", "Malaga", "Apia",    "Suva",    "Nuuk",   "Perth"};
constexpr const char* kFillers[] = {"The ferry left the harbour a little later than planned, and nobody minded. ",
                                    "A light wind came from the west and the water stayed calm for hours. ",
                                    "The crew checked the instruments twice and wrote the numbers into the log. ",
                                    "Somebody made tea while the others looked at the charts. ",
                                    "In the afternoon a few clouds gathered over the hills behind the town. ",
                                    "The mechanic replaced a worn belt and cleaned the filters of the pump. "};

std::vector<Question> plain(const LongContext& what, const std::function<size_t(const std::string&)>& count_tokens) {
  Random random(what.seed);
  std::string sample;
  for (const char* filler : kFillers) sample += filler;
  const double per_sentence = static_cast<double>(count_tokens(sample)) / std::size(kFillers);
  const int needles = std::min<int>(what.needles, std::size(kCities));
  const int count = std::max(needles + 8, static_cast<int>((static_cast<double>(what.tokens) - 120) / per_sentence));
  std::vector<std::string> sentences;
  for (int i = 0; i < count; ++i) sentences.emplace_back(kFillers[random.below(std::size(kFillers))]);
  std::vector<std::pair<std::string, std::string>> asked;
  std::vector<int> depths;
  for (int n = 0; n < needles; ++n) {
    const int at = static_cast<int>((n + 0.5) / needles * count);
    const std::string code = std::to_string(10000 + random.below(90000));
    sentences[static_cast<size_t>(at)] = std::string("The code of ") + kCities[n] + " is " + code + ". ";
    asked.emplace_back(std::string("What is the code of ") + kCities[n] + "? Answer with the number.", code);
    depths.push_back(at * 100 / count);
  }
  std::vector<Question> out;
  const auto add = [&](const std::vector<std::string>& body, const std::string& kind, const std::string& id,
                       const std::string& question, const std::string& answer, size_t group) {
    Question q{.id = id, .kind = kind + " " + token_count_text(what.tokens), .language = "en"};
    std::string text = "Read this text.\n\n";
    for (const std::string& sentence : body) text += sentence;
    q.messages = nlohmann::ordered_json::array({{{"role", "user"}, {"content", text + "\n\n" + question}}});
    q.text = text + "\n\n" + question;
    q.match = Match::contains;
    q.answers = {answer};
    q.group = group;
    out.push_back(std::move(q));
  };
  for (size_t n = 0; n < asked.size(); ++n) {
    add(sentences, "needle", std::to_string(what.tokens) + "/needle/" + std::to_string(depths[n]) + "%", asked[n].first,
        asked[n].second, what.group);
  }
  for (int n = 0; n < what.counts; ++n) {
    std::vector<std::string> copy = sentences;
    const int bells = 1 + 2 * n;
    for (int i = 0; i < bells; ++i) {
      const int at = static_cast<int>((i + random.uniform(0.2, 0.8)) / bells * count);
      copy[static_cast<size_t>(std::min(at, count - 1))] += "Then the bell rang once. ";
    }
    add(copy, "count", std::to_string(what.tokens) + "/count/" + std::to_string(bells),
        "How many times did the bell ring? Answer with a number.", std::to_string(bells),
        what.group + 1 + static_cast<size_t>(n));
  }
  return out;
}

}  // namespace

std::vector<Question> long_context_questions(const LongContext& what,
                                             const std::function<size_t(const std::string&)>& count_tokens) {
  return what.style == LongStyle::buoy ? buoy(what, count_tokens) : plain(what, count_tokens);
}

Result<int64_t> parse_token_count(const std::string& text) {
  int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  const std::string unit(parsed.ptr, end);
  const int64_t factor = unit.empty()                 ? 1
                         : unit == "K" || unit == "k" ? 1 << 10
                         : unit == "M" || unit == "m" ? 1 << 20
                                                      : 0;
  if (parsed.ec != std::errc() || factor == 0 || number < 1 || number > (int64_t{1} << 24) / factor ||
      number * factor < 512) {
    return Error{"read a length", text.substr(0, 40), "tokens from 512 to 16M, as 8K or 1M", "something else", ""};
  }
  return number * factor;
}

std::string token_count_text(int64_t tokens) {
  if (tokens % (1 << 20) == 0) return std::to_string(tokens >> 20) + "M";
  if (tokens % (1 << 10) == 0) return std::to_string(tokens >> 10) + "K";
  return std::to_string(tokens);
}

}  // namespace proa
