#include "http/server.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_set>
#include <utility>

#include "http/handler_pool.h"
#include "http/transport.h"

namespace proa::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using LocalProtocol = asio::local::stream_protocol;
using boost::system::error_code;
using std::chrono::milliseconds;

constexpr size_t kReadBytes = size_t{16} << 10;   // at a time
constexpr size_t kWriteBytes = size_t{64} << 10;  // at a time, each within write_timeout
constexpr size_t kMaxAhead = size_t{64} << 10;    // read while a request is in work: pipelined requests
constexpr milliseconds kLinger{2000};             // for a client that still sends what nobody wants
constexpr size_t kResumeThreads = 4;

class PlainTransport final : public Transport {
 public:
  explicit PlainTransport(Socket socket) : socket_(std::move(socket)) {}
  void handshake(Done done) override { done({}, 0); }
  void read(asio::mutable_buffer into, Done done) override { socket_.async_read_some(into, std::move(done)); }
  void write(asio::const_buffer all, Done done) override { asio::async_write(socket_, all, std::move(done)); }
  Socket& socket() override { return socket_; }

 private:
  Socket socket_;
};

std::string http_date() {
  const std::time_t now = std::time(nullptr);
  std::tm utc = {};
  gmtime_r(&now, &utc);
  std::array<char, 64> text{};
  return {text.data(), std::strftime(text.data(), text.size(), "%a, %d %b %Y %H:%M:%S GMT", &utc)};
}

// Line breaks would end a header; nothing that comes from a client may do that.
void append_header(std::string& head, std::string_view name, std::string_view value) {
  head.append(name).append(": ");
  for (const char c : value) head += c == '\r' || c == '\n' || c == '\0' ? ' ' : c;
  head += "\r\n";
}

std::string response_head(const Response& response, int version, bool close) {
  std::string head = version == 10 ? "HTTP/1.0 " : "HTTP/1.1 ";
  head += std::to_string(response.status) + " " + reason_phrase(response.status) + "\r\n";
  append_header(head, "date", http_date());
  append_header(head, "server", "proa");
  for (const Header& header : response.headers) append_header(head, header.name, header.value);
  if (!response.content_type.empty()) append_header(head, "content-type", response.content_type);
  if (close) {
    append_header(head, "connection", "close");
  } else if (version == 10) {
    append_header(head, "connection", "keep-alive");
  }
  return head;
}

std::string whole_response(const Response& response, int version, bool close, bool without_body) {
  std::string bytes = response_head(response, version, close);
  append_header(bytes, "content-length", std::to_string(response.body.size()));
  bytes += "\r\n";
  if (!without_body) bytes += response.body;
  return bytes;
}

// What the server says itself: body and type as its owner has them.
Response own_answer(const ServerConfig& config, int status, std::string_view message) {
  Response answer{.status = status, .content_type = "text/plain; charset=utf-8", .body = std::string(message)};
  if (config.error_response) {
    Response given = config.error_response(status, message);
    answer.content_type = std::move(given.content_type);
    answer.body = std::move(given.body);
  }
  if (status == 503) answer.headers.push_back({"retry-after", "1"});
  return answer;
}

std::string chunk(std::string_view part) {
  std::array<char, 24> size{};
  const int length = std::snprintf(size.data(), size.size(), "%zx\r\n", part.size());
  std::string bytes(size.data(), static_cast<size_t>(length));
  bytes.append(part).append("\r\n");
  return bytes;
}

std::string to_text(const tcp::endpoint& endpoint) {
  const std::string address = endpoint.address().to_string();
  return (endpoint.address().is_v6() ? "[" + address + "]" : address) + ":" + std::to_string(endpoint.port());
}

class Connection;
class ServerExchange;

}  // namespace

struct Server::Impl : std::enable_shared_from_this<Impl> {
  explicit Impl(ServerConfig given)
      : config(std::move(given)),
        handlers(config.max_handlers, config.max_waiting),
        quick(2, config.max_waiting),
        resumed(kResumeThreads, config.max_waiting) {}

  Result<void> listen();
  Result<void> listen_tcp();
  Result<void> listen_local();
  template <typename Acceptor>
  void accept(Acceptor& acceptor);
  void begin(Socket socket, std::string peer);
  void remove(const std::shared_ptr<Connection>& connection);
  void close_acceptors();
  bool drain(milliseconds timeout);
  void request_done();

  const ServerConfig config;
  asio::io_context io{1};
  std::optional<tcp::acceptor> tcp_acceptor;
  std::optional<LocalProtocol::acceptor> local_acceptor;
  asio::steady_timer accept_again{io};
  MakeTransport make_transport;
  HandlerPool handlers, quick;
  HandlerPool resumed;  // the next parts of answers whose handlers have returned
  int port = 0;
  std::string address;

  // Of the thread of io alone.
  std::unordered_set<std::shared_ptr<Connection>> connections;
  bool draining = false;

  std::atomic<size_t> body_bytes{0};  // of requests that are being received, wait, or are being read by their handlers
  std::atomic<size_t> num_requests{0};
  std::mutex mutex;  // guards the two below
  std::condition_variable closed;
  size_t num_connections = 0;

  std::mutex drain_mutex;  // one drain at a time
  std::thread thread;      // runs io; joined by drain()
};

namespace {

// One client. Lives on the thread of io; what handlers may touch is marked.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Server::Impl& server, std::unique_ptr<Transport> transport, std::string peer)
      : server_(server), transport_(std::move(transport)), peer_(std::move(peer)) {}

  void start();
  void close_if_idle() {
    if (state_ == State::reading && !request_begun_) close();
  }
  void close();
  void begin_draining() {
    if (state_ == State::lingering) close();
    close_if_idle();
  }

  // For handlers, from any thread.
  bool gone() const { return gone_.load(std::memory_order_relaxed); }
  bool wait_for_room();  // false: gone
  void send(std::string bytes, bool last, bool close_after);
  void handler_returned();
  bool has_room();
  // Keeps an exchange whose handler has returned, and wakes it when the client leaves or takes what was sent.
  void hold(std::shared_ptr<ServerExchange> exchange);
  Server::Impl& server() { return server_; }

 private:
  enum class State { reading, working, closing, lingering, closed };
  using Parser = beast::http::request_parser<beast::http::string_body>;

  void next_request();
  void process_input();
  bool check_header();
  void release_body();
  void dispatch();
  void reject(int status, std::string_view message);
  void read_more();
  void on_read(const error_code& error, size_t size);
  void write_more();
  void on_written(const error_code& error, size_t size);
  void flushed();
  void linger();
  void set_deadline(milliseconds after);
  void on_deadline();

  Server::Impl& server_;
  std::unique_ptr<Transport> transport_;
  const std::string peer_;
  asio::steady_timer read_timer_{server_.io}, write_timer_{server_.io};
  uint64_t read_deadline_ = 0, write_deadline_ = 0;  // numbers of the timers' last settings

  State state_ = State::reading;
  std::optional<Parser> parser_;
  std::array<char, kReadBytes> chunk_{};
  std::string in_;
  bool reading_ = false;
  bool request_begun_ = false;
  bool header_seen_ = false;
  std::vector<Header> headers_;  // as they were before the body: what comes behind it must not count as one of them
  Clock::time_point request_started_;
  size_t reserved_body_ = 0;

  std::string out_;      // to be sent next
  std::string sending_;  // being sent, from sent_ on
  size_t sent_ = 0;
  bool writing_ = false;
  bool answered_ = false;  // all of the answer is in out_
  bool returned_ = false;  // the handler is done
  bool close_after_ = false;

  // Shared with the handler.
  std::atomic<bool> gone_{false};
  std::mutex mutex_;
  std::condition_variable room_;
  size_t unsent_ = 0;
  std::shared_ptr<ServerExchange> held_;
  bool starved_ = false;  // it waits for room
};

class ServerExchange final : public Exchange, public std::enable_shared_from_this<ServerExchange> {
 public:
  // `body_bytes`: what the server counts for the body, until it is dropped or the whole answer is on its way: a client
  // that has read that finds room.
  ServerExchange(std::shared_ptr<Connection> connection, Request request, size_t body_bytes, bool keep_alive)
      : connection_(std::move(connection)),
        server_(connection_->server().shared_from_this()),
        request_(std::move(request)),
        body_bytes_(body_bytes),
        keep_alive_(keep_alive) {}
  ~ServerExchange() override { drop_body(); }

  void drop_body() {
    request_.body = {};
    release_body();
  }

  const Request& request() const override { return request_; }
  bool client_gone() const override { return connection_->gone(); }

  void respond(Response response) override {
    if (stage_ != Stage::open) return;
    stage_ = Stage::ended;
    status_ = response.status;
    release_body();
    report(AccessRecord::Event::finished, false);
    connection_->send(whole_response(response, request_.version, !keep_alive_, request_.method == "HEAD"), true,
                      !keep_alive_);
  }

  void begin_stream(Response head) override {
    if (stage_ != Stage::open) return;
    stage_ = Stage::streaming;
    status_ = head.status;
    chunked_ = request_.version >= 11;
    if (!chunked_) keep_alive_ = false;  // the end of the connection ends the body
    std::string bytes = response_head(head, request_.version, !keep_alive_);
    if (chunked_) append_header(bytes, "transfer-encoding", "chunked");
    report(AccessRecord::Event::started, true);
    connection_->send(bytes + "\r\n", false, false);
  }

  bool write(std::string_view part) override {
    if (stage_ != Stage::streaming) return false;
    if (part.empty()) return !client_gone();  // an empty chunk would end the body
    if (!connection_->wait_for_room()) return false;
    connection_->send(chunked_ ? chunk(part) : std::string(part), false, false);
    return true;
  }

  void end_stream() override {
    if (stage_ != Stage::streaming) return;
    stage_ = Stage::ended;
    release_body();
    report(AccessRecord::Event::finished, true);
    connection_->send(chunked_ ? "0\r\n\r\n" : "", true, !keep_alive_);
  }

  void detach(std::function<bool()> resume) override {
    resume_ = std::move(resume);
    detached_ = true;
    connection_->hold(shared_from_this());
  }
  std::function<void()> waker() override {
    return [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->wake();
    };
  }
  bool has_room() override { return connection_->has_room(); }

  bool detached() const { return detached_; }
  void wake() {
    if (scheduled_.exchange(true)) return;
    server_->resumed.resubmit([self = shared_from_this()] { self->resume(); });
  }

  // After the handler: whatever it did, the client learns how it stands.
  void complete(const ServerConfig& config) {
    if (stage_ == Stage::open) {
      respond(own_answer(config, 500, "Internal Server Error"));
    } else if (stage_ == Stage::streaming) {
      stage_ = Stage::ended;
      report(AccessRecord::Event::finished, true);
      connection_->send("", true, true);
    }
    connection_->handler_returned();
  }

 private:
  enum class Stage { open, streaming, ended };

  void report(AccessRecord::Event event, bool streamed) {
    const auto& on_access = server_->config.on_access;
    if (!on_access) return;
    const double seconds = std::chrono::duration<double>(Clock::now() - began_).count();
    on_access({event, streamed, request_.peer, request_.method, request_.target, request_.version, status_, seconds});
  }

  void release_body() { server_->body_bytes -= body_bytes_.exchange(0); }

  void resume() {
    scheduled_ = false;  // what comes from now on is a reason to look again
    std::lock_guard one(resuming_);
    if (!resume_) return;
    bool done = true;
    try {
      done = resume_();
    } catch (const std::exception&) {  // as in a handler
    }
    if (!done) return;
    resume_ = nullptr;
    connection_->hold(nullptr);
    server_->request_done();
    complete(server_->config);
  }

  std::shared_ptr<Connection> connection_;
  const std::shared_ptr<Server::Impl> server_;  // a waker may come when the server is no more
  Request request_;
  std::atomic<size_t> body_bytes_;  // an answer may come from another thread while the handler returns
  bool keep_alive_;
  bool detached_ = false;
  std::atomic<bool> scheduled_{false};
  std::mutex resuming_;  // guards resume_, and all that it does
  std::function<bool()> resume_;
  bool chunked_ = false;
  Stage stage_ = Stage::open;
  int status_ = 0;
  const Clock::time_point began_ = Clock::now();
};

// --- connection: reading ---

void Connection::start() {
  set_deadline(server_.config.header_timeout);
  transport_->handshake([self = shared_from_this()](const error_code& error, size_t) {
    if (self->state_ == State::closed) return;
    if (error) return self->close();
    self->next_request();
  });
}

void Connection::next_request() {
  if (server_.draining) return linger();
  state_ = State::reading;
  parser_.emplace();
  parser_->eager(false);  // it stops behind the headers, before trailers join them
  parser_->header_limit(static_cast<uint32_t>(std::min<size_t>(server_.config.max_header_bytes, UINT32_MAX)));
  parser_->body_limit(server_.config.max_body_bytes);
  request_begun_ = header_seen_ = answered_ = returned_ = close_after_ = false;
  set_deadline(server_.config.idle_timeout);
  process_input();
}

void Connection::process_input() {
  if (!in_.empty() && !request_begun_) {
    request_begun_ = true;
    request_started_ = Clock::now();
    set_deadline(server_.config.header_timeout);
  }
  size_t consumed = 0;
  error_code error;
  while (consumed < in_.size() && !parser_->is_done()) {
    const size_t taken = parser_->put(asio::buffer(in_.data() + consumed, in_.size() - consumed), error);
    consumed += taken;
    if (error) break;
    if (parser_->is_header_done() && !header_seen_) {
      if (!check_header()) return;
      parser_->eager(true);
    }
  }
  in_.erase(0, consumed);
  if (error && error != beast::http::error::need_more) {
    if (error == beast::http::error::header_limit) return reject(431, "Request headers are too large");
    if (error == beast::http::error::body_limit || error == beast::http::error::buffer_overflow) {
      return reject(413, "Request body is too large");
    }
    return reject(400, "Invalid HTTP request received.");
  }
  if (parser_->is_done()) return dispatch();
  // A line of the body's framing that does not end: the parser waits for it and takes nothing meanwhile.
  if (in_.size() > server_.config.max_header_bytes) return reject(400, "Invalid HTTP request received.");
  if (header_seen_) {
    if (const size_t received = parser_->get().body().size(); received > reserved_body_) {  // chunked: no length said
      server_.body_bytes += received - reserved_body_;
      reserved_body_ = received;
      if (server_.body_bytes > server_.config.max_body_bytes_in_all) return reject(503, "Too many requests at a time");
    }
    const auto left =
        std::chrono::duration_cast<milliseconds>(request_started_ + server_.config.request_timeout - Clock::now());
    set_deadline(std::clamp(left, milliseconds(1), server_.config.body_timeout));
  }
  read_more();
}

// Whether nobody can see another length in it than the parser does: no coding but chunked, which an old client does not
// know, and a length that is a plain number, once.
bool framing_is_plain(const beast::http::fields& fields, int version) {
  const auto codings = fields.count(beast::http::field::transfer_encoding);
  if (codings > 0) {
    return codings == 1 && version >= 11 &&
           equal_ignoring_case(std::string_view(fields[beast::http::field::transfer_encoding]), "chunked");
  }
  const std::string_view length(fields[beast::http::field::content_length]);
  return fields.count(beast::http::field::content_length) <= 1 && length.find_first_not_of("0123456789") == length.npos;
}

// What is refused before the body is read. False: it was.
bool Connection::check_header() {
  header_seen_ = true;
  const auto& message = parser_->get();
  headers_.clear();
  for (const auto& field : message) {
    headers_.push_back({std::string(field.name_string()), std::string(field.value())});
  }
  if (headers_.size() > server_.config.max_headers) {
    reject(431, "Too many request headers");
    return false;
  }
  const auto hosts = message.count(beast::http::field::host);
  if (hosts > 1 || (message.version() >= 11 && hosts == 0)) {
    reject(400, hosts > 1 ? "More than one Host: header" : "Missing mandatory Host: header");
    return false;
  }
  if (!framing_is_plain(message, static_cast<int>(message.version()))) {
    reject(400, "Invalid HTTP request received.");
    return false;
  }
  if (message.version() != 10 && message.version() != 11) {
    reject(505, "HTTP version not supported");
    return false;
  }
  reserved_body_ = static_cast<size_t>(parser_->content_length().value_or(0));  // within max_body_bytes: see body_limit
  server_.body_bytes += reserved_body_;
  if (server_.body_bytes > server_.config.max_body_bytes_in_all) {
    reject(503, "Too many requests at a time");
    return false;
  }
  if (!parser_->is_done() && message.version() >= 11 &&
      equal_ignoring_case(std::string_view(message[beast::http::field::expect]), "100-continue")) {
    out_ += "HTTP/1.1 100 Continue\r\n\r\n";
    write_more();
  }
  return true;
}

void Connection::release_body() {
  server_.body_bytes -= reserved_body_;
  reserved_body_ = 0;
}

void Connection::dispatch() {
  const bool keep_alive = parser_->keep_alive() && !server_.draining;
  auto message = parser_->release();
  Request request;
  request.method = std::string(message.method_string());
  request.target = std::string(message.target());
  request.version = static_cast<int>(message.version());
  request.peer = peer_;
  request.headers = std::move(headers_);
  request.body = std::move(message.body());
  if (!split_target(request)) return reject(400, "Invalid HTTP request received.");

  state_ = State::working;
  ++read_deadline_;  // none: a handler takes the time it takes
  read_timer_.cancel();
  const bool quick = server_.config.is_quick && server_.config.is_quick(request);
  auto exchange = std::make_shared<ServerExchange>(shared_from_this(), std::move(request),
                                                   std::exchange(reserved_body_, 0), keep_alive);
  const bool accepted = (quick ? server_.quick : server_.handlers).submit([exchange, quick, &server = server_] {
    if (!quick) ++server.num_requests;
    try {
      if (server.config.handler) server.config.handler(*exchange);
    } catch (
        const std::exception&) {  // of libraries, and of memory that is short: this request fails, the rest goes on
    }
    exchange->drop_body();
    if (exchange->detached()) {
      if (quick) ++server.num_requests;
      return exchange->wake();
    }
    if (!quick) server.request_done();
    exchange->complete(server.config);
  });
  if (!accepted) {
    state_ = State::reading;
    return reject(503, "The server is overloaded, please try again later");
  }
  if (in_.size() < kMaxAhead) read_more();  // to notice that the client leaves
}

void Connection::reject(int status, std::string_view message) {
  release_body();
  if (server_.config.on_access) {
    server_.config.on_access({AccessRecord::Event::finished, false, peer_, "", "", 11, status, 0});
  }
  state_ = State::closing;
  ++read_deadline_;
  answered_ = returned_ = close_after_ = true;
  out_ += whole_response(own_answer(server_.config, status, message), 11, true, false);
  write_more();
}

void Connection::read_more() {
  if (reading_ || state_ == State::closed) return;
  reading_ = true;
  transport_->read(asio::buffer(chunk_), [self = shared_from_this()](const error_code& error, size_t size) {
    self->reading_ = false;
    self->on_read(error, size);
  });
}

void Connection::on_read(const error_code& error, size_t size) {
  if (state_ == State::closed) return;
  if (error) return close();  // in work: the handler sees that the client has gone
  if (state_ == State::lingering) return read_more();
  in_.append(chunk_.data(), size);
  if (state_ == State::reading) return process_input();
  if (state_ == State::working && in_.size() < kMaxAhead) read_more();
}

// --- connection: writing ---

bool Connection::wait_for_room() {
  std::unique_lock lock(mutex_);
  room_.wait(lock, [&] { return gone() || unsent_ < server_.config.max_unsent_bytes; });
  return !gone();
}

bool Connection::has_room() {
  std::lock_guard lock(mutex_);
  starved_ = !gone() && unsent_ >= server_.config.max_unsent_bytes;
  return !starved_;
}

void Connection::hold(std::shared_ptr<ServerExchange> exchange) {
  std::lock_guard lock(mutex_);
  std::swap(held_, exchange);
  starved_ = false;
}

void Connection::send(std::string bytes, bool last, bool close_after) {
  {
    std::lock_guard lock(mutex_);
    unsent_ += bytes.size();
  }
  asio::post(server_.io, [self = shared_from_this(), bytes = std::move(bytes), last, close_after] {
    if (self->state_ != State::working) return;
    self->out_ += bytes;
    self->answered_ = self->answered_ || last;
    self->close_after_ = self->close_after_ || close_after;
    self->write_more();
  });
}

void Connection::handler_returned() {
  asio::post(server_.io, [self = shared_from_this()] {
    self->returned_ = true;
    if (self->state_ == State::working && !self->writing_) self->flushed();
  });
}

void Connection::write_more() {
  if (writing_ || state_ == State::closed) return;
  if (sent_ == sending_.size()) {
    sending_.clear();
    sent_ = 0;
    std::swap(sending_, out_);
  }
  if (sending_.empty()) return flushed();
  writing_ = true;
  write_timer_.expires_after(server_.config.write_timeout);
  write_timer_.async_wait([self = shared_from_this(), number = ++write_deadline_](const error_code& error) {
    if (!error && number == self->write_deadline_) self->close();
  });
  const size_t size = std::min(kWriteBytes, sending_.size() - sent_);
  transport_->write(
      asio::buffer(sending_.data() + sent_, size),
      [self = shared_from_this()](const error_code& error, size_t written) { self->on_written(error, written); });
}

void Connection::on_written(const error_code& error, size_t size) {
  writing_ = false;
  ++write_deadline_;
  write_timer_.cancel();
  if (state_ == State::closed) return;
  if (error) return close();
  sent_ += size;
  if (state_ == State::working) {
    std::shared_ptr<ServerExchange> starved;
    {
      std::lock_guard lock(mutex_);
      unsent_ -= std::min(unsent_, size);
      if (starved_ && unsent_ < server_.config.max_unsent_bytes) starved = held_;
      if (starved) starved_ = false;
    }
    room_.notify_one();
    if (starved) starved->wake();
  }
  write_more();
}

// Nothing is left to send.
void Connection::flushed() {
  if (!answered_ || !returned_) return;
  if (state_ != State::working && state_ != State::closing) return;
  if (close_after_ || server_.draining) return linger();
  {
    std::lock_guard lock(mutex_);
    unsent_ = 0;
  }
  next_request();
}

// Closing at once while the client still sends would reset the connection, and the client might never read the answer.
void Connection::linger() {
  state_ = State::lingering;
  error_code ignored;
  transport_->socket().shutdown(Socket::shutdown_send, ignored);
  in_.clear();
  set_deadline(server_.draining ? kLinger / 10 : kLinger);
  read_more();
}

void Connection::close() {
  if (state_ == State::closed) return;
  state_ = State::closed;
  release_body();
  error_code ignored;
  transport_->socket().close(ignored);
  read_timer_.cancel();
  write_timer_.cancel();
  std::shared_ptr<ServerExchange> held;
  {
    std::lock_guard lock(mutex_);
    gone_.store(true, std::memory_order_relaxed);
    held = held_;
  }
  room_.notify_all();
  if (held) held->wake();
  server_.remove(shared_from_this());
}

void Connection::set_deadline(milliseconds after) {
  read_timer_.expires_after(after);
  read_timer_.async_wait([self = shared_from_this(), number = ++read_deadline_](const error_code& error) {
    if (!error && number == self->read_deadline_) self->on_deadline();
  });
}

void Connection::on_deadline() {
  if (state_ == State::reading && request_begun_) return reject(408, "Request timed out");
  close();
}

}  // namespace

// --- server ---

Result<void> Server::Impl::listen() {
  if (!config.ssl_certfile.empty()) {
    PROA_ASSIGN(make_transport, make_tls(config));
  } else {
    make_transport = [](Socket socket) { return std::make_unique<PlainTransport>(std::move(socket)); };
  }
  return config.uds.empty() ? listen_tcp() : listen_local();
}

Result<void> Server::Impl::listen_tcp() {
  const std::string host = config.host.empty() ? "0.0.0.0" : config.host;
  const std::string where = host + ":" + std::to_string(config.port);
  if (config.port < 0 || config.port > 65535) {
    return Error{.doing = "listen", .where = "--port", .expected = "0 to 65535", .actual = std::to_string(config.port)};
  }
  error_code error;
  tcp::resolver resolver(io);
  const auto found = resolver.resolve(host, std::to_string(config.port), tcp::resolver::passive, error);
  if (error || found.empty()) {
    return Error{
        .doing = "listen", .where = where, .expected = "an address of this machine", .actual = error.message()};
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  tcp_acceptor.emplace(io);
  if (tcp_acceptor->open(endpoint.protocol(), error) ||
      tcp_acceptor->set_option(tcp::acceptor::reuse_address(true), error) || tcp_acceptor->bind(endpoint, error) ||
      tcp_acceptor->listen(2048, error)) {
    return Error{
        .doing = "listen",
        .where = where,
        .expected = {},
        .actual = error.message(),
        .hint = error == asio::error::address_in_use ? "another server runs there, --port chooses another" : ""};
  }
  port = tcp_acceptor->local_endpoint(error).port();
  address = (config.ssl_certfile.empty() ? "http://" : "https://") +
            (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + std::to_string(port);
  accept(*tcp_acceptor);
  return {};
}

Result<void> Server::Impl::listen_local() {
  const auto failed = [&](const std::string& why) {
    return Error{.doing = "listen", .where = "--uds " + config.uds, .actual = why};
  };
  if (config.uds.size() >= sizeof(sockaddr_un::sun_path)) return failed("the path is too long for a socket");
  const LocalProtocol::endpoint endpoint(config.uds);
  error_code error;
  LocalProtocol::socket probe(io);
  if (!probe.connect(endpoint, error)) return failed("another server listens there");
  // Left by a server that is no more. Files that are no sockets refuse connections too, and are somebody's.
  struct stat there = {};
  if (error == asio::error::connection_refused && ::lstat(config.uds.c_str(), &there) == 0 && S_ISSOCK(there.st_mode)) {
    ::unlink(config.uds.c_str());
  }
  local_acceptor.emplace(io);
  if (local_acceptor->open(endpoint.protocol(), error) || local_acceptor->bind(endpoint, error) ||
      local_acceptor->listen(2048, error)) {
    return failed(error.message());
  }
  address = "unix:" + config.uds;
  accept(*local_acceptor);
  return {};
}

template <typename Acceptor>
void Server::Impl::accept(Acceptor& acceptor) {
  acceptor.async_accept([this, &acceptor](const error_code& error, typename Acceptor::protocol_type::socket socket) {
    if (!acceptor.is_open()) return;
    if (error) {  // out of file descriptors, most likely: some will be closed
      accept_again.expires_after(milliseconds(100));
      accept_again.async_wait([this, &acceptor](const error_code& cancelled) {
        if (!cancelled) accept(acceptor);
      });
      return;
    }
    std::string peer;
    if constexpr (std::is_same_v<Acceptor, tcp::acceptor>) {
      error_code ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      peer = to_text(socket.remote_endpoint(ignored));
    }
    begin(Socket(std::move(socket)), std::move(peer));
    accept(acceptor);
  });
}

void Server::Impl::begin(Socket socket, std::string peer) {
  if (connections.size() >= config.max_connections) {
    if (config.ssl_certfile.empty()) {
      error_code ignored;
      socket.non_blocking(true, ignored);
      socket.send(asio::buffer(whole_response(own_answer(config, 503, "Too many connections"), 11, true, false)), 0,
                  ignored);
      socket.shutdown(Socket::shutdown_send, ignored);
    }
    if (config.on_access) config.on_access({AccessRecord::Event::finished, false, peer, "", "", 11, 503, 0});
    return;
  }
  auto connection = std::make_shared<Connection>(*this, make_transport(std::move(socket)), std::move(peer));
  connections.insert(connection);
  {
    std::lock_guard lock(mutex);
    ++num_connections;
  }
  connection->start();
}

void Server::Impl::remove(const std::shared_ptr<Connection>& connection) {
  connections.erase(connection);
  {
    std::lock_guard lock(mutex);
    --num_connections;
  }
  closed.notify_all();
}

void Server::Impl::request_done() {
  {
    std::lock_guard lock(mutex);
    --num_requests;
  }
  closed.notify_all();
}

void Server::Impl::close_acceptors() {
  error_code ignored;
  accept_again.cancel();
  if (tcp_acceptor) tcp_acceptor->close(ignored);
  if (local_acceptor && local_acceptor->is_open()) {
    local_acceptor->close(ignored);
    ::unlink(config.uds.c_str());
  }
}

bool Server::Impl::drain(milliseconds timeout) {
  std::lock_guard one(drain_mutex);
  if (!thread.joinable()) return true;
  asio::post(io, [this] {
    draining = true;
    close_acceptors();
    const auto now = connections;  // which closing changes
    for (const auto& connection : now) connection->begin_draining();
  });
  bool all_done;
  {
    std::unique_lock lock(mutex);
    // Those that ask for the first time during the wait are answered and closed, so the number goes down.
    all_done = closed.wait_for(lock, timeout, [this] { return num_connections == 0; });
  }
  asio::post(io, [this] {
    const auto now = connections;
    for (const auto& connection : now) connection->close();
  });
  handlers.join();
  {
    std::unique_lock lock(mutex);
    closed.wait(lock, [this] { return num_requests == 0; });  // those that have returned know that they are cut
  }
  resumed.join();
  quick.join();
  asio::post(io, [this] {  // behind everything that handlers posted
    const auto now = connections;
    for (const auto& connection : now) connection->close();
    io.stop();
  });
  thread.join();
  return all_done;
}

Server::Server(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Server>> Server::start(ServerConfig config) {
  auto impl = std::make_shared<Impl>(std::move(config));
  PROA_TRY(impl->listen());
  impl->thread = std::thread([raw = impl.get()] { raw->io.run(); });
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::~Server() { drain(milliseconds(0)); }

int Server::port() const { return impl_->port; }
std::string Server::address() const { return impl_->address; }
bool Server::drain(milliseconds timeout) { return impl_->drain(timeout); }

Server::Load Server::load() const {
  std::lock_guard lock(impl_->mutex);
  return {impl_->num_connections, impl_->num_requests.load()};
}

}  // namespace proa::http
