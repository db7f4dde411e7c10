#include "hostile.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "backends/backends.h"
#include "chat/chat_template.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "models/model.h"
#include "tokenizer/tokenizer.h"

// Sanitizers keep what is freed and shadow all memory, so that a peak says nothing.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PROA_PEAK_IS_KNOWN false
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define PROA_PEAK_IS_KNOWN false
#endif
#endif
#ifndef PROA_PEAK_IS_KNOWN
#define PROA_PEAK_IS_KNOWN true
#endif

namespace proa::hostile {

constexpr int64_t kMemory = 64 << 20;  // beside the size of the files
constexpr unsigned kSeconds = 60;      // of processor time; the slowest takes one

std::string repeat(std::string_view text, size_t count) {
  std::string all;
  all.reserve(text.size() * count);
  while (count-- > 0) all += text;
  return all;
}

void replace(std::string& text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

namespace {

Result<std::string> template_source(const Checkpoint& checkpoint) {
  if (const Gguf* gguf = checkpoint.gguf()) {
    PROA_ASSIGN(const auto source, gguf->string("tokenizer.chat_template"));
    return std::string(source);
  }
  return checkpoint.read_text("chat_template.jinja");
}

Result<void> open_parts(const std::string& path) {
  PROA_ASSIGN(Checkpoint opened, Checkpoint::open(path));
  const auto checkpoint = std::make_shared<const Checkpoint>(std::move(opened));
  PROA_ASSIGN(const Tokenizer tokenizer, Tokenizer::open(*checkpoint));
  const auto ids = tokenizer.encode("a hostile b\n", {.parse_special = true, .add_bos = true});
  if (tokenizer.decode(ids).size() > 1000) return Error{"decode", "", "", "much text", ""};
  PROA_ASSIGN(const std::string source, template_source(*checkpoint));
  PROA_ASSIGN(const auto chat, ChatTemplate::create(source, {.bos_token = "<s>", .eos_token = "</s>"}));
  PROA_TRY(chat.render(nlohmann::ordered_json::parse(R"([{"role": "user", "content": "hi"}])")));
  PROA_ASSIGN(const auto backend, make_backend("reference"));
  PROA_ASSIGN(const auto model, open_model(checkpoint, *backend));
  return {};
}

// Bytes of "VmHWM:   1234 kB" and its like in /proc/self/status.
int64_t memory_of_this_process(std::string_view field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field)) return std::atoll(line.c_str() + field.size() + 1) * 1024;
  }
  return -1;
}

void write_files(const fs::path& folder, const Files& files) {
  for (const auto& [name, bytes] : files) std::ofstream(folder / name, std::ios::binary) << bytes;
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = fs::temp_directory_path() / "proa_hostile_XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
    fs::create_directories(path_ / "F");
    fs::permissions(path_, fs::perms(0755));
  }
  ~TemporaryFolder() {
    std::error_code code;
    fs::remove_all(path_, code);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  fs::path path() const { return path_ / "F"; }

 private:
  fs::path path_;
};

}  // namespace

std::string open_all(const std::string& path) {
  const auto result = open_parts(path);
  return result.ok() ? "no error" : result.error().message();
}

Opened open_in_child(const std::string& path, Reader reader) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) return {"no pipe"};
  const pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    const rlimit seconds = {kSeconds, kSeconds};
    setrlimit(RLIMIT_CPU, &seconds);
    constexpr uid_t kNobody = 65534;
    if (reader == Reader::nobody && geteuid() == 0 && seteuid(kNobody) != 0) std::_Exit(1);
    std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts anew
    const int64_t before = memory_of_this_process("VmRSS");
    const int64_t fresh_peak = memory_of_this_process("VmHWM");
    const std::string message = open_all(path);
    int64_t peak = memory_of_this_process("VmHWM");
    // Where the peak cannot be reset it may be that of the parent.
    peak = before < 0 || fresh_peak > before + (1 << 20) ? -1 : peak - before;
    std::string report = std::to_string(peak) + "\n" + message;
    for (size_t done = 0; done < report.size();) {
      const ssize_t written = write(ends[1], report.data() + done, report.size() - done);
      if (written <= 0) break;
      done += static_cast<size_t>(written);
    }
    std::_Exit(0);
  }
  close(ends[1]);
  std::string report;
  std::array<char, 4096> buffer{};
  for (ssize_t count; (count = read(ends[0], buffer.data(), buffer.size())) > 0;) {
    report.append(buffer.data(), static_cast<size_t>(count));
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return {"the process died" + (WIFSIGNALED(status) ? " of signal " + std::to_string(WTERMSIG(status)) : "")};
  }
  const size_t end = report.find('\n');
  return {report.substr(end + 1), std::atoll(report.c_str())};
}

void expect_all(const Files& good, const std::string& open, const std::vector<Fixture>& fixtures) {
  {
    const TemporaryFolder folder;
    write_files(folder.path(), good);
    ASSERT_EQ(open_in_child(open.empty() ? folder.path() : folder.path() / open).message, "no error");
  }
  int64_t largest = 0;
  for (const Fixture& fixture : fixtures) {
    SCOPED_TRACE(fixture.what);
    const TemporaryFolder folder;
    Files files = good;
    if (fixture.change) fixture.change(files);
    write_files(folder.path(), files);
    if (fixture.arrange) fixture.arrange(folder.path());
    const std::string name = fixture.open.empty() ? open : fixture.open;
    auto [message, peak] = open_in_child(name.empty() ? folder.path() : folder.path() / name, fixture.reader);
    for (size_t at; (at = message.find(folder.path().string())) != message.npos;) {
      message.replace(at, folder.path().string().size(), "F");
    }
    EXPECT_NE(message, "no error");
    EXPECT_EQ(message.find("the process died"), message.npos) << message;
    EXPECT_LT(message.size(), 4000u) << "a message is for reading";
    for (const std::string& part : fixture.said) EXPECT_NE(message.find(part), message.npos) << part << "\n" << message;
    if (!PROA_PEAK_IS_KNOWN || peak < 0) continue;
    int64_t bytes = 0;
    for (const auto& [file, text] : files) bytes += static_cast<int64_t>(text.size());
    EXPECT_LT(peak, bytes + kMemory) << "for " << bytes << " bytes of files";
    largest = std::max(largest, peak - bytes);
  }
  std::printf("%zu hostile fixtures; at most %.1f MB of memory beyond the files\n", fixtures.size(),
              static_cast<double>(largest) / (1 << 20));
}

namespace {

TEST(Hostile, Gguf) { expect_all(good_gguf(), "model.gguf", gguf_fixtures()); }
TEST(Hostile, Safetensors) { expect_all(good_folder(), "", safetensors_fixtures()); }
TEST(Hostile, Folder) { expect_all(good_folder(), "", folder_fixtures()); }
TEST(Hostile, Tokenizer) { expect_all(good_folder(), "", tokenizer_fixtures()); }
TEST(Hostile, GgufTokenizer) { expect_all(good_gguf(), "model.gguf", gguf_tokenizer_fixtures()); }
TEST(Hostile, Template) { expect_all(good_folder(), "", template_fixtures()); }

TEST(Hostile, Count) {
  size_t count = 0, named = 0;
  for (const auto& fixtures : {gguf_fixtures(), safetensors_fixtures(), folder_fixtures(), tokenizer_fixtures(),
                               gguf_tokenizer_fixtures(), template_fixtures()}) {
    count += fixtures.size();
    for (const Fixture& fixture : fixtures) named += fixture.said.empty() ? 0 : 1;
  }
  std::printf("%zu hostile fixtures in all\n", count);
  EXPECT_GE(count, 150u);
  EXPECT_EQ(named, count) << "each states its message";
}

}  // namespace
}  // namespace proa::hostile
