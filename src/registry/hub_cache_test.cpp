#include "registry/hub_cache.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace proa {
namespace {

namespace fs = std::filesystem;

const std::string kCommit = "1111111111111111111111111111111111111111";
const std::string kOther = "2222222222222222222222222222222222222222";

// A cache with one complete model of two shards; each row changes one thing.
class HubCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("proa_hub_" + std::to_string(getpid()));
    reset();
  }
  void TearDown() override { fs::remove_all(root_); }

  void reset() {
    fs::remove_all(root_);
    fs::create_directories(root_);
    add("snapshots/" + kCommit + "/config.json", "{}");
    add("snapshots/" + kCommit + "/model.safetensors.index.json",
        R"({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}})");
    add("snapshots/" + kCommit + "/model-1.safetensors", "1");
    add("snapshots/" + kCommit + "/model-2.safetensors", "2");
    add("refs/main", kCommit);
  }

  fs::path repo() const { return root_ / "models--org--name"; }
  std::string snapshot(const std::string& commit = kCommit) const { return (repo() / "snapshots" / commit).string(); }

  void add(const std::string& file, const std::string& text) const {
    fs::create_directories((repo() / file).parent_path());
    std::ofstream(repo() / file) << text;
  }

  std::string resolve(const std::string& name, const std::string& revision = "") const {
    const auto found = resolve_model(name, {.cache = root_.string(), .revision = revision});
    return found.ok() ? *found : found.error().message();
  }

  // A snapshot of these GGUF files alone.
  void only(const std::vector<std::string>& files) const {
    fs::remove_all(repo() / "snapshots");
    for (const std::string& file : files) add("snapshots/" + kCommit + "/" + file, "GGUF");
  }

  fs::path root_;
};

TEST_F(HubCacheTest, FindsTheSnapshot) {
  EXPECT_EQ(resolve("org/name"), snapshot());
  EXPECT_EQ(resolve("org/name@main"), snapshot());
  EXPECT_EQ(resolve("org/name:main"), snapshot());
  EXPECT_EQ(resolve("org/name", kCommit), snapshot());
  EXPECT_EQ(resolve("org/name@" + kCommit, "of-the-flag"), snapshot());

  add("refs/pr/7", kOther + "\n");
  fs::copy(snapshot(), snapshot(kOther));
  EXPECT_EQ(resolve("org/name"), snapshot());
  EXPECT_EQ(resolve("org/name@pr/7"), snapshot(kOther));

  fs::remove_all(repo() / "refs");
  EXPECT_EQ(resolve("org/name"),
            "find model: org/name: expected a revision, as refs/main is missing, found the "
            "snapshots " +
                kCommit + ", " + kOther + " (choose one with --revision)");
  fs::remove_all(snapshot(kOther));
  EXPECT_EQ(resolve("org/name"), snapshot());  // the only one
}

TEST_F(HubCacheTest, ALocalPathWins) {
  EXPECT_EQ(resolve(repo().string()), repo().string());
  EXPECT_EQ(resolve(snapshot() + "/config.json"), snapshot() + "/config.json");
}

TEST_F(HubCacheTest, FilesBesideTheLayout) {
  fs::remove_all(repo());
  add("config.json", "{}");
  add("model.safetensors", "1");
  EXPECT_EQ(resolve("org/name"), repo().string());
  fs::remove(repo() / "model.safetensors");
  add(".cache/huggingface/download/x.incomplete", "");
  EXPECT_EQ(resolve("org/name"), "find model: org/name: expected a complete model in " + repo().string() +
                                     ", found 1 missing: model.safetensors or model.safetensors.index.json, and 1 "
                                     "unfinished downloads: .cache/huggingface/download/x.incomplete "
                                     "(proa pull org/name downloads it)");
}

TEST_F(HubCacheTest, WhatIsMissingIsListed) {
  const struct {
    std::function<void()> change;
    std::string says;
  } rows[] = {
      {[&] { fs::remove(fs::path(snapshot()) / "config.json"); }, "found 1 missing: config.json (proa pull org/name"},
      {[&] {
         fs::remove(fs::path(snapshot()) / "model-1.safetensors");
         fs::remove(fs::path(snapshot()) / "model-2.safetensors");
         add("blobs/abc.incomplete", "x");
       },
       "found 2 missing: model-1.safetensors, model-2.safetensors, and 1 unfinished downloads: blobs/abc.incomplete "
       "(proa pull org/name downloads it)"},
      {[&] {  // a link that leads nowhere
         fs::remove(fs::path(snapshot()) / "model-2.safetensors");
         fs::create_symlink("../../blobs/none", fs::path(snapshot()) / "model-2.safetensors");
       },
       "found 1 missing: model-2.safetensors"},
      {[&] { fs::remove(fs::path(snapshot()) / "model.safetensors.index.json"); },
       "missing: model.safetensors or model.safetensors.index.json"},
      {[&] { fs::remove_all(repo()); }, "find model: org/name: expected a file, a folder, or a model in " +
                                            root_.string() +
                                            ", found none of that name (proa pull org/name downloads it)"},
      {[&] { fs::remove_all(snapshot()); }, "expected the snapshot " + kCommit + ", found none in "},
      {[&] { fs::remove_all(repo() / "snapshots"), fs::remove_all(repo() / "refs"); }, "expected a snapshot in "},
      {[&] { add("refs/main", "../../../outside"), fs::remove_all(repo() / "snapshots"); }, "expected a snapshot in "},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.says);
    reset();
    row.change();
    EXPECT_NE(resolve("org/name").find(row.says), std::string::npos) << resolve("org/name");
  }
  reset();
  EXPECT_EQ(resolve("org/name@v2"), "find model: org/name@v2: expected that revision in " + repo().string() +
                                        ", found the snapshots " + kCommit + " (proa pull org/name@v2 downloads it)");
}

TEST_F(HubCacheTest, GgufFiles) {
  only({"model.Q4_0.gguf"});
  EXPECT_EQ(resolve("org/name"), snapshot() + "/model.Q4_0.gguf");
  only({"model.Q4_0.gguf", "model.Q8_0.gguf", "mmproj-F16.gguf", "deep/model-bf16.gguf", "config.json"});
  EXPECT_EQ(resolve("org/name:Q8_0"), snapshot() + "/model.Q8_0.gguf");
  EXPECT_EQ(resolve("org/name:bf16"), snapshot() + "/deep/model-bf16.gguf");
  EXPECT_EQ(resolve("org/name/deep/model-bf16.gguf"), snapshot() + "/deep/model-bf16.gguf");
  EXPECT_EQ(resolve("org/name/model.Q4_0.gguf@main"), snapshot() + "/model.Q4_0.gguf");
  const std::string all = "deep/model-bf16.gguf, model.Q4_0.gguf, model.Q8_0.gguf";
  for (const char* name : {"org/name", "org/name:Q4", "org/name/none.gguf"}) {
    EXPECT_NE(resolve(name).find(", found " + all), std::string::npos) << resolve(name);
  }
  only({"Q4_0/m-00001-of-00002.gguf", "Q4_0/m-00002-of-00002.gguf", "m-q8_0-00001-of-00002.gguf"});
  EXPECT_EQ(resolve("org/name:Q4_0"), snapshot() + "/Q4_0/m-00001-of-00002.gguf");
  EXPECT_NE(resolve("org/name:Q8_0").find("1 missing: m-q8_0-00002-of-00002.gguf"), std::string::npos);
  reset();  // safetensors come first, unless a GGUF file is asked for
  add("snapshots/" + kCommit + "/extra.Q4_0.gguf", "GGUF");
  EXPECT_EQ(resolve("org/name"), snapshot());
  EXPECT_EQ(resolve("org/name:Q4_0"), snapshot() + "/extra.Q4_0.gguf");
}

TEST_F(HubCacheTest, AReadOnlyCacheAndLinks) {
  add("blobs/1", "1");
  fs::remove(fs::path(snapshot()) / "model-1.safetensors");
  fs::create_symlink("../../blobs/1", fs::path(snapshot()) / "model-1.safetensors");
  fs::create_directory_symlink("..", fs::path(snapshot()) / "cycle");
  fs::permissions(repo(), fs::perms::owner_read | fs::perms::owner_exec);
  EXPECT_EQ(resolve("org/name"), snapshot());
  fs::permissions(repo(), fs::perms::owner_all);
}

// Values of the environment for one test.
class Environment {
 public:
  explicit Environment(std::initializer_list<std::pair<const char*, const char*>> values) {
    for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME",
                             "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}) {
      const char* value = std::getenv(name);
      before_.emplace_back(name, value ? std::optional<std::string>(value) : std::nullopt);
      ::unsetenv(name);
    }
    for (const auto& [name, value] : values) ::setenv(name, value, 1);
  }
  ~Environment() {
    for (const auto& [name, value] : before_) value ? ::setenv(name, value->c_str(), 1) : ::unsetenv(name);
  }

 private:
  std::vector<std::pair<const char*, std::optional<std::string>>> before_;
};

TEST(HubCache, FoldersByTheEnvironment) {
  using Values = std::initializer_list<std::pair<const char*, const char*>>;
  const auto cache = [](Values values) {
    const Environment set(values);
    return hub_cache_folder();
  };
  EXPECT_EQ(cache({}), "");
  EXPECT_EQ(cache({{"HOME", "/h"}}), "/h/.cache/huggingface/hub");
  EXPECT_EQ(cache({{"HOME", "/h"}, {"XDG_CACHE_HOME", "/x"}}), "/x/huggingface/hub");
  EXPECT_EQ(cache({{"HOME", "/h"}, {"XDG_CACHE_HOME", "/x"}, {"HF_HOME", "~/f"}}), "/h/f/hub");
  EXPECT_EQ(cache({{"HF_HOME", "/f"}, {"HUGGINGFACE_HUB_CACHE", "/g"}}), "/g");
  EXPECT_EQ(cache({{"HUGGINGFACE_HUB_CACHE", "/g"}, {"HF_HUB_CACHE", "/c"}}), "/c");
  EXPECT_EQ(cache({{"HOME", "/h"}, {"HF_HUB_CACHE", ""}}), "/h/.cache/huggingface/hub");
  const auto offline = [](Values values) {
    const Environment set(values);
    return hub_is_offline();
  };
  EXPECT_FALSE(offline({}));
  EXPECT_FALSE(offline({{"HF_HUB_OFFLINE", "0"}}));
  EXPECT_TRUE(offline({{"HF_HUB_OFFLINE", "1"}}));
  EXPECT_TRUE(offline({{"HF_HUB_OFFLINE", "true"}}));
  EXPECT_TRUE(offline({{"TRANSFORMERS_OFFLINE", "1"}}));
}

}  // namespace
}  // namespace proa
