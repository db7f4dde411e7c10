#include "chat/jinja_parser.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <initializer_list>

#include "chat/jinja_eval.h"
#include "chat/jinja_lexer.h"

namespace proa::jinja {
namespace {

using Kind = Token::Kind;

// A syntax error is kept in `error_` and the position jumps to the end, where every rule stops.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Result<Body> run() {
    Body body = statements({});
    if (!error_ && peek().kind != Kind::kEnd) fail("unexpected " + describe(peek()));
    if (error_) return *std::move(error_);
    if (!unknown_.empty()) return syntax_error(unknown_[0].first, unknown_[0].second);
    return body;
  }

 private:
  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  const Token& next() {
    const Token& token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  static std::string describe(const Token& token) {
    switch (token.kind) {
      case Kind::kEnd:
        return "end of template";
      case Kind::kBlockEnd:
        return "end of block";
      case Kind::kVariableEnd:
        return "end of expression";
      case Kind::kString:
        return "string";
      default:
        return "'" + token.text + "'";
    }
  }
  void fail(std::string message, int line = 0) {
    if (!error_) error_ = syntax_error(line ? line : peek().line, std::move(message));
    at_ = tokens_.size() - 1;
  }
  bool is_op(std::string_view text, size_t ahead = 0) const {
    return peek(ahead).kind == Kind::kOperator && peek(ahead).text == text;
  }
  bool is_name(std::string_view text, size_t ahead = 0) const {
    return peek(ahead).kind == Kind::kName && peek(ahead).text == text;
  }
  bool skip_op(std::string_view text) { return is_op(text) ? next(), true : false; }
  bool skip_name(std::string_view text) { return is_name(text) ? next(), true : false; }
  void expect_op(std::string_view text) {
    if (!skip_op(text)) fail("expected '" + std::string(text) + "', found " + describe(peek()));
  }
  void expect_name(std::string_view text) {
    if (!skip_name(text)) fail("expected '" + std::string(text) + "', found " + describe(peek()));
  }
  void expect_block_end() {
    if (peek().kind != Kind::kBlockEnd) return fail("expected end of block, found " + describe(peek()));
    next();
  }
  std::string name() {
    if (peek().kind != Kind::kName) return fail("expected a name, found " + describe(peek())), "";
    return next().text;
  }

  struct Nested {
    explicit Nested(Parser* parser) : parser_(parser) {
      if (++parser->depth_ > kMaxSyntaxDepth) parser->fail("nested too deeply");
    }
    ~Nested() { --parser_->depth_; }
    Parser* parser_;
  };

  // Jinja looks filters and tests up when it compiles, but below an `if`, where the name may be meant for an
  // environment that has it.
  void check_known(std::string_view what, const std::string& name, bool known, int line) {
    if (!known && !soft_) unknown_.push_back({line, "no " + std::string(what) + " named '" + name + "'"});
  }

  // ---- statements

  bool at_block_word(std::initializer_list<std::string_view> words) const {
    return peek().kind == Kind::kBlockBegin && peek(1).kind == Kind::kName &&
           std::find(words.begin(), words.end(), peek(1).text) != words.end();
  }

  // Until a block that begins with one of `ends`, which stays unread; until the end of the template without any.
  Body statements(std::initializer_list<std::string_view> ends) {
    Body body;
    Nested nested(this);
    const int begin_line = peek().line;
    while (!error_) {
      if (peek().kind == Kind::kEnd) {
        if (ends.size() > 0)
          fail("block is never closed, expected '" + std::string(*(ends.end() - 1)) + "'", begin_line);
        break;
      }
      if (at_block_word(ends)) break;
      const int line = peek().line;
      if (peek().kind == Kind::kData) {
        body.push_back({.kind = Stmt::Kind::kData, .line = line, .text = next().text});
      } else if (peek().kind == Kind::kVariableBegin) {
        next();
        body.push_back({.kind = Stmt::Kind::kOutput, .line = line, .expr = tuple()});
        if (!error_ && peek().kind != Kind::kVariableEnd) fail("expected end of expression, found " + describe(peek()));
        next();
      } else if (peek().kind == Kind::kBlockBegin) {
        next();
        statement(line, &body);
      } else {
        fail("unexpected " + describe(peek()));
      }
    }
    return body;
  }

  // The body up to {% word %}, which is read; the start tag's end is read first.
  Body block(std::string_view word) {
    expect_block_end();
    const bool soft = std::exchange(soft_, false);
    Body body = statements({word});
    soft_ = soft;
    next();
    next();
    expect_block_end();
    return body;
  }

  void statement(int line, Body* body) {
    Nested nested(this);
    const std::string word = name();
    if (error_) return;
    Stmt stmt{.kind = Stmt::Kind::kData, .line = line};
    if (word == "if") {
      parse_if(&stmt);
    } else if (word == "for") {
      parse_for(&stmt);
    } else if (word == "set") {
      parse_set(&stmt);
    } else if (word == "macro") {
      stmt.kind = Stmt::Kind::kMacro;
      stmt.macro = std::make_unique<MacroDefinition>();
      stmt.macro->name = name();
      parse_macro(stmt.macro.get(), "endmacro");
    } else if (word == "call") {
      stmt.kind = Stmt::Kind::kCallBlock;
      stmt.macro = std::make_unique<MacroDefinition>();
      stmt.macro->name = "caller";
      const bool has_parameters = is_op("(");
      if (has_parameters) parameters(stmt.macro.get());
      stmt.expr = expression();
      if (!error_ && stmt.expr->kind != Expr::Kind::kCall) fail("expected a call", line);
      macro_body(stmt.macro.get(), "endcall");
    } else if (word == "filter") {
      stmt.kind = Stmt::Kind::kFilterBlock;
      stmt.expr = filters(nullptr, true);
      stmt.body = block("endfilter");
    } else if (word == "with") {
      stmt.kind = Stmt::Kind::kWith;
      while (!error_ && peek().kind != Kind::kBlockEnd) {
        if (!stmt.assignments.empty()) expect_op(",");
        Target target = this->target();
        expect_op("=");
        stmt.assignments.emplace_back(std::move(target), expression());
      }
      stmt.body = block("endwith");
    } else if (word == "generation") {
      stmt.kind = Stmt::Kind::kScope;
      const int outer_loops = std::exchange(loop_depth_, 0);
      stmt.body = block("endgeneration");
      loop_depth_ = outer_loops;
    } else if (word == "break" || word == "continue") {
      if (loop_depth_ == 0) return fail("'" + word + "' outside of a loop", line);
      stmt.kind = word == "break" ? Stmt::Kind::kBreak : Stmt::Kind::kContinue;
      expect_block_end();
    } else if (word == "autoescape" || word == "do" || word == "extends" || word == "block" || word == "import" ||
               word == "from" || word == "include" || word == "trans") {
      return fail("'" + word + "' blocks are not supported", line);
    } else {
      return fail("unknown block '" + word + "'", line);
    }
    body->push_back(std::move(stmt));
  }

  void parse_if(Stmt* stmt) {
    stmt->kind = Stmt::Kind::kIf;
    const bool soft = std::exchange(soft_, true);
    ExprPtr condition = tuple(false);
    while (!error_) {
      expect_block_end();
      stmt->branches.emplace_back(std::move(condition), statements({"elif", "else", "endif"}));
      if (error_) return;
      next();
      const std::string word = next().text;
      if (word == "endif") break;
      if (word == "elif") {
        condition = tuple(false);
        continue;
      }
      expect_block_end();
      stmt->branches.emplace_back(nullptr, statements({"endif"}));
      next();
      next();
      break;
    }
    soft_ = soft;
    expect_block_end();
  }

  void parse_for(Stmt* stmt) {
    stmt->kind = Stmt::Kind::kFor;
    stmt->target = target(true);
    expect_name("in");
    stmt->expr = tuple(false);
    if (skip_name("if")) stmt->condition = expression();
    stmt->recursive = skip_name("recursive");
    expect_block_end();
    ++loop_depth_;
    const bool soft = std::exchange(soft_, false);
    stmt->body = statements({"else", "endfor"});
    --loop_depth_;
    if (error_) return;
    next();
    if (next().text == "else") {
      expect_block_end();
      stmt->otherwise = statements({"endfor"});
      next();
      next();
    }
    soft_ = soft;
    expect_block_end();
  }

  void parse_set(Stmt* stmt) {
    stmt->target = target();
    if (skip_op("=")) {
      stmt->kind = Stmt::Kind::kSet;
      stmt->expr = tuple();
      return expect_block_end();
    }
    stmt->kind = Stmt::Kind::kSetBlock;
    if (is_op("|")) stmt->expr = filters(nullptr, false);
    stmt->body = block("endset");
  }

  void parameters(MacroDefinition* macro) {
    expect_op("(");
    while (!error_ && !is_op(")")) {
      if (!macro->parameters.empty()) expect_op(",");
      if (is_op(")")) break;
      macro->parameters.push_back(name());
      macro->defaults.push_back(skip_op("=") ? expression() : nullptr);
      if (!error_ && !macro->defaults.back() && macro->defaults.size() > 1 && *(macro->defaults.end() - 2)) {
        fail("a parameter without default follows one with a default");
      }
    }
    expect_op(")");
  }

  void macro_body(MacroDefinition* macro, std::string_view end) {
    const size_t begin = at_;
    const int outer_loops = std::exchange(loop_depth_, 0);
    macro->body = block(end);
    loop_depth_ = outer_loops;
    if (error_) return;
    for (size_t i = begin; i < at_; ++i) {
      if (tokens_[i].kind != Kind::kName) continue;
      macro->takes_varargs |= tokens_[i].text == "varargs";
      macro->takes_kwargs |= tokens_[i].text == "kwargs";
      macro->takes_caller |= tokens_[i].text == "caller";
    }
  }

  void parse_macro(MacroDefinition* macro, std::string_view end) {
    parameters(macro);
    macro_body(macro, end);
  }

  Target target(bool in_for = false) {
    Nested nested(this);
    std::vector<Target> elements;
    bool is_tuple = false;
    while (!error_) {
      if (is_tuple && (is_op("=") || is_op(")") || peek().kind == Kind::kBlockEnd || (in_for && is_name("in")))) break;
      if (skip_op("(")) {
        elements.push_back(target());
        expect_op(")");
      } else {
        Target one;
        one.name = name();
        if (one.name == "true" || one.name == "false" || one.name == "none" || one.name == "True" ||
            one.name == "False" || one.name == "None") {
          fail("cannot assign to '" + one.name + "'");
        }
        if (!in_for && skip_op(".")) one.attribute = name();
        elements.push_back(std::move(one));
      }
      if (!skip_op(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && !elements.empty()) return std::move(elements[0]);
    Target all;
    all.elements = std::move(elements);
    return all;
  }

  // ---- expressions, from the loosest to the tightest binding

  ExprPtr make(Expr::Kind kind, int line, std::vector<ExprPtr> args = {}, std::string text = "") {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    expr->name = std::move(text);
    expr->args = std::move(args);
    measure(expr.get());
    return expr;
  }
  // Left-leaning chains grow without recursion here, but evaluation recurses: so the depth of trees counts too.
  void measure(Expr* expr) {
    for (const ExprPtr& arg : expr->args) {
      if (arg) expr->depth = std::max(expr->depth, arg->depth + 1);
    }
    for (const auto& [key, arg] : expr->kwargs) {
      if (arg) expr->depth = std::max(expr->depth, arg->depth + 1);
    }
    for (const ExprPtr* arg : {&expr->star_args, &expr->star_kwargs}) {
      if (*arg) expr->depth = std::max(expr->depth, (*arg)->depth + 1);
    }
    if (expr->depth > kMaxSyntaxDepth) fail("expression is too long", expr->line);
  }
  template <typename... Args>
  static std::vector<ExprPtr> list(Args... args) {
    std::vector<ExprPtr> out;
    (out.push_back(std::move(args)), ...);
    return out;
  }

  bool at_tuple_end() const {
    return peek().kind == Kind::kVariableEnd || peek().kind == Kind::kBlockEnd || is_op(")") ||
           peek().kind == Kind::kEnd;
  }

  // One expression, or several with commas between. `conditional` is off where an `if` belongs to the statement.
  ExprPtr tuple(bool conditional = true, bool parenthesized = false) {
    const int line = peek().line;
    std::vector<ExprPtr> items;
    bool is_tuple = false;
    while (!error_) {
      if (at_tuple_end()) break;
      items.push_back(conditional ? expression() : parse_or());
      if (!skip_op(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && items.size() == 1) return std::move(items[0]);
    if (items.empty() && !parenthesized) fail("expected an expression, found " + describe(peek()), line);
    return make(Expr::Kind::kTuple, line, std::move(items));
  }

  ExprPtr expression() {
    Nested nested(this);
    const int line = peek().line;
    const size_t unknown = unknown_.size();
    ExprPtr value = parse_or();
    while (!error_ && skip_name("if")) {
      ExprPtr condition = parse_or();
      ExprPtr otherwise = skip_name("else") ? expression() : nullptr;
      value = make(Expr::Kind::kConditional, line, list(std::move(condition), std::move(value), std::move(otherwise)));
      unknown_.resize(unknown);
    }
    return value;
  }

  ExprPtr parse_or() {
    ExprPtr left = parse_and();
    while (!error_ && is_name("or")) {
      const int line = next().line;
      left = make(Expr::Kind::kOr, line, list(std::move(left), parse_and()));
    }
    return left;
  }

  ExprPtr parse_and() {
    ExprPtr left = parse_not();
    while (!error_ && is_name("and")) {
      const int line = next().line;
      left = make(Expr::Kind::kAnd, line, list(std::move(left), parse_not()));
    }
    return left;
  }

  ExprPtr parse_not() {
    if (!is_name("not")) return parse_compare();
    Nested nested(this);
    const int line = next().line;
    return make(Expr::Kind::kNot, line, list(parse_not()));
  }

  ExprPtr parse_compare() {
    const int line = peek().line;
    ExprPtr first = parse_sum();
    std::vector<ExprPtr> args;
    std::vector<std::string> operators;
    while (!error_) {
      std::string op;
      if (peek().kind == Kind::kOperator) {
        for (std::string_view known : {"==", "!=", "<", "<=", ">", ">="}) {
          if (peek().text == known) op = known;
        }
        if (op.empty()) break;
        next();
      } else if (is_name("in")) {
        next();
        op = "in";
      } else if (is_name("not") && is_name("in", 1)) {
        next();
        next();
        op = "not in";
      } else {
        break;
      }
      operators.push_back(op);
      if (args.empty()) args.push_back(std::move(first));
      args.push_back(parse_sum());
    }
    if (args.empty()) return first;
    ExprPtr expr = make(Expr::Kind::kCompare, line, std::move(args));
    expr->operators = std::move(operators);
    return expr;
  }

  ExprPtr binary(std::initializer_list<std::string_view> operators, ExprPtr (Parser::*operand)()) {
    ExprPtr left = (this->*operand)();
    while (!error_ && peek().kind == Kind::kOperator &&
           std::find(operators.begin(), operators.end(), peek().text) != operators.end()) {
      const Token& op = next();
      left = make(Expr::Kind::kBinary, op.line, list(std::move(left), (this->*operand)()), op.text);
    }
    return left;
  }

  ExprPtr parse_sum() { return binary({"+", "-"}, &Parser::parse_concat); }

  ExprPtr parse_concat() {
    const int line = peek().line;
    ExprPtr first = parse_product();
    if (error_ || !is_op("~")) return first;
    std::vector<ExprPtr> args;
    args.push_back(std::move(first));
    while (!error_ && skip_op("~")) args.push_back(parse_product());
    return make(Expr::Kind::kConcat, line, std::move(args));
  }

  ExprPtr parse_product() { return binary({"*", "/", "//", "%"}, &Parser::parse_power); }
  ExprPtr parse_power() { return binary({"**"}, &Parser::parse_unary); }
  ExprPtr parse_unary() { return unary(true); }

  ExprPtr unary(bool with_filter) {
    Nested nested(this);
    const int line = peek().line;
    ExprPtr expr;
    if (skip_op("-")) {
      expr = make(Expr::Kind::kNegative, line, list(unary(false)));
    } else if (skip_op("+")) {
      expr = make(Expr::Kind::kPositive, line, list(unary(false)));
    } else {
      expr = primary();
    }
    expr = postfix(std::move(expr));
    return with_filter ? filters(std::move(expr), false) : std::move(expr);
  }

  ExprPtr constant(Value value, int line) {
    ExprPtr expr = make(Expr::Kind::kConst, line);
    expr->constant = std::move(value);
    return expr;
  }

  ExprPtr primary() {
    Nested nested(this);
    const Token token = peek();
    switch (token.kind) {
      case Kind::kName:
        next();
        if (token.text == "true" || token.text == "True") return constant(Value(true), token.line);
        if (token.text == "false" || token.text == "False") return constant(Value(false), token.line);
        if (token.text == "none" || token.text == "None") return constant(Value(), token.line);
        return make(Expr::Kind::kName, token.line, {}, token.text);
      case Kind::kString: {
        std::string text;
        while (peek().kind == Kind::kString) text += next().text;
        return constant(template_text(text), token.line);
      }
      case Kind::kInteger:
        next();
        return constant(integer(token), token.line);
      case Kind::kFloat:
        next();
        return constant(Value(std::strtod(token.text.c_str(), nullptr)), token.line);
      default:
        break;
    }
    if (skip_op("(")) {
      ExprPtr expr = tuple(true, true);
      expect_op(")");
      return expr;
    }
    if (skip_op("[")) {
      std::vector<ExprPtr> items;
      while (!error_ && !is_op("]")) {
        if (!items.empty()) expect_op(",");
        if (is_op("]")) break;
        items.push_back(expression());
      }
      expect_op("]");
      return make(Expr::Kind::kList, token.line, std::move(items));
    }
    if (skip_op("{")) {
      std::vector<ExprPtr> items;
      while (!error_ && !is_op("}")) {
        if (!items.empty()) expect_op(",");
        if (is_op("}")) break;
        items.push_back(expression());
        expect_op(":");
        items.push_back(expression());
      }
      expect_op("}");
      return make(Expr::Kind::kDict, token.line, std::move(items));
    }
    fail("expected an expression, found " + describe(token));
    return constant(Value(), token.line);
  }

  Value integer(const Token& token) {
    std::string_view digits = token.text;
    int base = 10;
    if (digits.size() > 2 && digits[0] == '0' && !(digits[1] >= '0' && digits[1] <= '9')) {
      base = (digits[1] | 32) == 'x' ? 16 : (digits[1] | 32) == 'o' ? 8 : 2;
      digits.remove_prefix(2);
    }
    int64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (error != std::errc() || end != digits.data() + digits.size()) fail("bad integer " + token.text, token.line);
    return Value(value);
  }

  ExprPtr postfix(ExprPtr expr) {
    while (!error_) {
      const int line = peek().line;
      if (skip_op(".")) {
        if (peek().kind == Kind::kInteger) {
          const Token& token = next();
          expr = make(Expr::Kind::kGetitem, line, list(std::move(expr), constant(integer(token), line)));
        } else {
          expr = make(Expr::Kind::kGetattr, line, list(std::move(expr)), name());
        }
      } else if (is_op("[")) {
        expr = subscript(std::move(expr));
      } else if (is_op("(")) {
        expr = call(Expr::Kind::kCall, std::move(expr), "");
      } else {
        break;
      }
    }
    return expr;
  }

  ExprPtr subscript(ExprPtr expr) {
    Nested nested(this);
    const int line = next().line;
    ExprPtr parts[3];
    bool slice = false;
    for (int i = 0; i < 3 && !error_; ++i) {
      if (!is_op(":") && !is_op("]")) parts[i] = expression();
      if (i == 2 || !skip_op(":")) break;
      slice = true;
    }
    if (!slice && !parts[0]) fail("expected a subscript", line);
    expect_op("]");
    if (!slice) return make(Expr::Kind::kGetitem, line, list(std::move(expr), std::move(parts[0])));
    return make(Expr::Kind::kSlice, line,
                list(std::move(expr), std::move(parts[0]), std::move(parts[1]), std::move(parts[2])));
  }

  // args[0] is the callee or the filtered value; the parentheses follow.
  ExprPtr call(Expr::Kind kind, ExprPtr subject, std::string text) {
    ExprPtr expr = make(kind, peek().line, list(std::move(subject)), std::move(text));
    if (!is_op("(")) return expr;
    Nested nested(this);
    next();
    bool first = true;
    while (!error_ && !is_op(")")) {
      if (!first) expect_op(",");
      first = false;
      if (is_op(")")) break;
      if (expr->star_kwargs || (expr->star_args && is_op("*"))) {
        fail("an argument follows unpacked ones");
      } else if (skip_op("*")) {
        expr->star_args = expression();
      } else if (skip_op("**")) {
        expr->star_kwargs = expression();
      } else if (peek().kind == Kind::kName && is_op("=", 1)) {
        std::string key = next().text;
        next();
        expr->kwargs.emplace_back(std::move(key), expression());
      } else {
        if (!expr->kwargs.empty() || expr->star_args) fail("a positional argument follows a named one");
        expr->args.push_back(expression());
      }
    }
    expect_op(")");
    measure(expr.get());
    return expr;
  }

  // `| filter`, `is test` and calls of their results. `bare` begins with a filter's name: {% filter upper %}.
  ExprPtr filters(ExprPtr expr, bool bare) {
    while (!error_) {
      if (bare || skip_op("|")) {
        bare = false;
        const int line = peek().line;
        std::string text = name();
        while (!error_ && skip_op(".")) text += "." + name();
        if (!error_) check_known("filter", text, find_filter(text) != nullptr, line);
        expr = call(Expr::Kind::kFilter, std::move(expr), std::move(text));
      } else if (expr && is_name("is")) {
        expr = test(std::move(expr));
      } else if (expr && is_op("(")) {
        expr = call(Expr::Kind::kCall, std::move(expr), "");
      } else {
        break;
      }
    }
    return expr;
  }

  ExprPtr test(ExprPtr expr) {
    const int line = next().line;
    const bool negated = skip_name("not");
    std::string text = name();
    while (!error_ && skip_op(".")) text += "." + name();
    if (!error_) check_known("test", text, find_test(text) != nullptr, line);
    if (is_op("(")) {
      expr = call(Expr::Kind::kTest, std::move(expr), std::move(text));
    } else {
      expr = make(Expr::Kind::kTest, line, list(std::move(expr)), std::move(text));
      const Kind kind = peek().kind;
      const bool word = kind == Kind::kName && !is_name("else") && !is_name("or") && !is_name("and");
      if (word || kind == Kind::kString || kind == Kind::kInteger || kind == Kind::kFloat || is_op("[") || is_op("{")) {
        if (is_name("is")) fail("tests cannot be chained");
        expr->args.push_back(postfix(primary()));
        measure(expr.get());
      }
    }
    return negated ? make(Expr::Kind::kNot, line, list(std::move(expr))) : std::move(expr);
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loop_depth_ = 0;
  bool soft_ = false;  // below an `if`
  std::vector<std::pair<int, std::string>> unknown_;
  std::optional<Error> error_;
};

}  // namespace

Result<Body> parse(std::string_view source) {
  PROA_ASSIGN(std::vector<Token> tokens, tokenize(source));
  return Parser(std::move(tokens)).run();
}

}  // namespace proa::jinja
