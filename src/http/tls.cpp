#include "http/transport.h"

#ifdef PROA_TLS
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#endif

namespace proa::http {

#ifdef PROA_TLS
namespace {

namespace asio = boost::asio;
namespace ssl = boost::asio::ssl;

class TlsTransport final : public Transport {
 public:
  TlsTransport(Socket socket, std::shared_ptr<ssl::context> context)
      : context_(std::move(context)), stream_(std::move(socket), *context_) {}

  void handshake(Done done) override {
    stream_.async_handshake(ssl::stream_base::server,
                            [done = std::move(done)](const boost::system::error_code& error) { done(error, 0); });
  }
  void read(asio::mutable_buffer into, Done done) override { stream_.async_read_some(into, std::move(done)); }
  void write(asio::const_buffer all, Done done) override { asio::async_write(stream_, all, std::move(done)); }
  Socket& socket() override { return stream_.next_layer(); }

 private:
  std::shared_ptr<ssl::context> context_;
  ssl::stream<Socket> stream_;
};

}  // namespace

Result<MakeTransport> make_tls(const ServerConfig& config) {
  auto context = std::make_shared<ssl::context>(ssl::context::tls_server);
  boost::system::error_code error;
  const auto failed = [&](const char* flag, const std::string& file) {
    return Error{.doing = "set up TLS", .where = std::string(flag) + " " + file, .actual = error.message()};
  };
  context->set_options(ssl::context::default_workarounds | ssl::context::no_tlsv1 | ssl::context::no_tlsv1_1, error);
  // A key with a password is refused; the library would ask for it on the terminal.
  context->set_password_callback([](size_t, ssl::context::password_purpose) { return std::string(); }, error);
  if (context->use_certificate_chain_file(config.ssl_certfile, error)) {
    return failed("--ssl-certfile", config.ssl_certfile);
  }
  const std::string& key = config.ssl_keyfile.empty() ? config.ssl_certfile : config.ssl_keyfile;
  if (context->use_private_key_file(key, ssl::context::pem, error)) return failed("--ssl-keyfile", key);
  if (!config.ssl_ca_certs.empty() && context->load_verify_file(config.ssl_ca_certs, error)) {
    return failed("--ssl-ca-certs", config.ssl_ca_certs);
  }
  const int verify = config.ssl_cert_reqs == 0   ? ssl::verify_none
                     : config.ssl_cert_reqs == 1 ? ssl::verify_peer
                                                 : ssl::verify_peer | ssl::verify_fail_if_no_peer_cert;
  context->set_verify_mode(verify, error);
  return MakeTransport([context](Socket socket) { return std::make_unique<TlsTransport>(std::move(socket), context); });
}

#else

Result<MakeTransport> make_tls(const ServerConfig& config) {
  return Error{.doing = "set up TLS",
               .where = "--ssl-certfile " + config.ssl_certfile,
               .actual = "this program was built without OpenSSL"};
}

#endif

}  // namespace proa::http
