#include "registry/hub.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "registry/blob_hash.h"
#include "registry/cache_writer.h"

namespace proa {
namespace {

namespace fs = std::filesystem;

TEST(Hub, BlobNames) {
  const std::string sha(64, 'a');
  EXPECT_EQ(blob_name("\"" + sha + "\""), sha);
  EXPECT_EQ(blob_name("W/\"abc\""), "abc");
  EXPECT_EQ(blob_name("abc-gzip_1.2"), "abc-gzip_1.2");
  for (const std::string& etag :
       {std::string(), std::string("\"\""), std::string("\""), std::string("a/b"), std::string(".."), std::string(".a"),
        std::string("a b"), std::string("a\"b"), std::string("a.incomplete"), std::string("a\0b", 3),
        std::string(129, 'a'), std::string("\xc3\xbc")}) {
    EXPECT_EQ(blob_name(etag), "") << etag;
  }
}

TEST(Hub, Addresses) {
  if (!can_download()) GTEST_SKIP() << "built without libcurl";
  EXPECT_EQ(url_origin("https://Host.Example/x?y"), "https://host.example:443");
  EXPECT_EQ(url_origin("http://127.0.0.1:8080"), "http://127.0.0.1:8080");
  for (const char* url :
       {"", "host/x", "ftp://host/", "file:///etc/passwd", "https://user:word@host/", "http://", "http://[::x/"}) {
    EXPECT_EQ(url_origin(url), "") << url;
  }
  EXPECT_EQ(url_for_message("https://host/x?Signature=s"), "https://host/x");
  EXPECT_EQ(url_for_message("/x\x1b#s"), "/x\\x1b");
  EXPECT_EQ(url_escape("a b/ü?#%.gguf", true), "a%20b/%C3%BC%3F%23%25.gguf");
  EXPECT_EQ(url_escape("refs/pr/1", false), "refs%2Fpr%2F1");

  const auto hub = Hub::create({.endpoint = "https://mirror.example/hub//"});
  ASSERT_TRUE(hub.ok());
  EXPECT_EQ(hub->file_url("org/name", "c0", "a/b c.json"),
            "https://mirror.example/hub/org/name/resolve/c0/a/b%20c.json");
  EXPECT_FALSE(Hub::create({.endpoint = "https://mirror.example/?x"}).ok());
  EXPECT_FALSE(Hub::create({.endpoint = "https://mirror.example/\r\nX: y"}).ok());
}

TEST(BlobHash, KnownAnswers) {
  if (!can_download()) GTEST_SKIP() << "built without OpenSSL";
  const std::string text = "abc";
  const struct {
    const char* expected;
    bool matches;
    const char* found;
  } rows[] = {
      {"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", true,
       "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f", true,
       "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"},  // git hash-object
      {"0000000000000000000000000000000000000000", false, "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"},
      {"an-etag-that-is-no-hash", true, ""},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.expected);
    BlobHash hash(row.expected, text.size());
    hash.update(std::as_bytes(std::span(text).first(1)));
    hash.update(std::as_bytes(std::span(text).subspan(1)));
    EXPECT_EQ(hash.matches(), row.matches);
    EXPECT_EQ(hash.hex(), row.found);
  }
}

class CacheWriterTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("proa_cache_" + std::to_string(getpid()));
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }
  fs::path root_;
};

TEST_F(CacheWriterTest, Links) {
  ASSERT_TRUE(link_blob(root_.string(), "c0", "a/b/file", "blob1").ok());
  const fs::path link = root_ / "snapshots/c0/a/b/file";
  EXPECT_EQ(fs::read_symlink(link), "../../../../blobs/blob1");
  ASSERT_TRUE(link_blob(root_.string(), "c0", "a/b/file", "blob2").ok());  // of a hub that changed its mind
  EXPECT_EQ(fs::read_symlink(link), "../../../../blobs/blob2");
  EXPECT_EQ(std::distance(fs::directory_iterator(link.parent_path()), {}), 1);  // nothing temporary is left

  fs::create_directory_symlink(root_, root_ / "snapshots/c0/elsewhere");
  EXPECT_FALSE(link_blob(root_.string(), "c0", "elsewhere/file", "blob1").ok());
  EXPECT_FALSE(fs::exists(fs::symlink_status(root_ / "file")));
  EXPECT_FALSE(link_blob(root_.string(), "c0", "a/b/file/deeper", "blob1").ok());
  EXPECT_FALSE(link_blob(root_.string(), "c0", "a/b", "blob1").ok());
}

TEST_F(CacheWriterTest, Refs) {
  ASSERT_TRUE(write_ref(root_.string(), "refs/pr/1", "c0").ok());
  ASSERT_TRUE(write_ref(root_.string(), "refs/pr/1", "c1").ok());
  std::string text;
  std::ifstream(root_ / "refs/refs/pr/1") >> text;
  EXPECT_EQ(text, "c1");
  ASSERT_TRUE(write_ref(root_.string(), "c0", "c0").ok());
  EXPECT_FALSE(fs::exists(root_ / "refs/c0"));
}

TEST_F(CacheWriterTest, ALockIsHeldOnce) {
  const auto take = [&](std::atomic<bool>& cancelled, bool& waited) {
    return BlobLock::acquire(root_.string(), "models--org--name", "blob", &cancelled, [&] {
      waited = true;
      cancelled = true;  // the test waits no longer
    });
  };
  std::atomic<bool> cancelled = false;
  bool waited = false;
  {
    const auto first = take(cancelled, waited);
    ASSERT_TRUE(first.ok() && first->held());
    const auto second = take(cancelled, waited);
    ASSERT_TRUE(second.ok());
    EXPECT_FALSE(second->held());
    EXPECT_TRUE(waited);
  }
  waited = cancelled = false;
  const auto third = take(cancelled, waited);
  ASSERT_TRUE(third.ok());
  EXPECT_TRUE(third->held());
  EXPECT_FALSE(waited);
}

}  // namespace
}  // namespace proa
