// What lies between a connection and its bytes: a socket, or TLS over one. Inside of this folder only: it shows Asio.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <functional>
#include <memory>

#include "core/result.h"
#include "http/server.h"

namespace proa::http {

// TCP and unix sockets alike.
using Socket = boost::asio::generic::stream_protocol::socket;
using Done = std::function<void(const boost::system::error_code&, size_t)>;

// One read and one write may be under way at a time.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual void handshake(Done done) = 0;
  virtual void read(boost::asio::mutable_buffer into, Done done) = 0;  // at least one byte
  virtual void write(boost::asio::const_buffer all, Done done) = 0;    // all of it
  virtual Socket& socket() = 0;
};

using MakeTransport = std::function<std::unique_ptr<Transport>(Socket)>;

// Transports with TLS as the config says. Errors: certificate or key that cannot be read; a build without OpenSSL.
Result<MakeTransport> make_tls(const ServerConfig& config);

}  // namespace proa::http
