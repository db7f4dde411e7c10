#include "registry/blob_hash.h"

#include <algorithm>

#ifdef PROA_DOWNLOADS
#include <openssl/evp.h>
#endif

namespace proa {

struct BlobHash::State {
  std::string expected;
  std::string found;
#ifdef PROA_DOWNLOADS
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context{nullptr, EVP_MD_CTX_free};
#endif
};

bool BlobHash::can_check(std::string_view expected) {
  return (expected.size() == 64 || expected.size() == 40) && std::all_of(expected.begin(), expected.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

BlobHash::~BlobHash() = default;
BlobHash::BlobHash(BlobHash&&) noexcept = default;
BlobHash& BlobHash::operator=(BlobHash&&) noexcept = default;

std::string BlobHash::hex() const { return state_->found; }

#ifdef PROA_DOWNLOADS

BlobHash::BlobHash(std::string_view expected, uint64_t size) : state_(std::make_unique<State>()) {
  if (!can_check(expected)) return;
  state_->expected = expected;
  state_->context.reset(EVP_MD_CTX_new());
  const bool is_sha256 = expected.size() == 64;
  if (!EVP_DigestInit_ex(state_->context.get(), is_sha256 ? EVP_sha256() : EVP_sha1(), nullptr)) {
    state_->context.reset();  // matches() will say no
    return;
  }
  if (!is_sha256) {
    const std::string head = "blob " + std::to_string(size) + '\0';
    update(std::as_bytes(std::span(head)));
  }
}

void BlobHash::update(std::span<const std::byte> bytes) {
  if (state_->context) EVP_DigestUpdate(state_->context.get(), bytes.data(), bytes.size());
}

bool BlobHash::matches() {
  if (state_->expected.empty()) return true;
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  if (!state_->context || !EVP_DigestFinal_ex(state_->context.get(), digest, &size)) return false;
  static constexpr char kHex[] = "0123456789abcdef";
  for (unsigned i = 0; i < size; ++i) state_->found += {kHex[digest[i] >> 4], kHex[digest[i] & 15]};
  return state_->found == state_->expected;
}

#else  // without OpenSSL nothing is downloaded, and nothing is checked

BlobHash::BlobHash(std::string_view, uint64_t) : state_(std::make_unique<State>()) {}
void BlobHash::update(std::span<const std::byte>) {}
bool BlobHash::matches() { return false; }

#endif

}  // namespace proa
