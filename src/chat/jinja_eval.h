// The interpreter: walks the syntax tree with one scope per loop iteration and macro call.
// Failures are kept in `budget`: the first one wins, every function then returns quickly with a value of no meaning,
// and run()'s caller looks at budget.failed() once.
#pragma once

#include <ctime>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chat/jinja_ast.h"
#include "chat/jinja_value.h"

namespace proa::jinja {

struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> variables;  // names live in the tree
  bool captured = false;  // a macro was defined inside, so the scope lives as long as the interpreter
};

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> named;
  Value unpacked;  // keeps the dict of f(**dict) alive, whose keys are names
  Origin name_origin = Origin::kTemplate;

  const Value& operator[](size_t i) const { return positional[i]; }
};

class Interpreter;

// A filter, test, method or global function. `parameters` are names with spaces between; arguments come bound to
// them, missing where not given. "*" takes the arguments as they are.
struct Builtin {
  std::string_view parameters;
  size_t required;
  Value (*function)(Interpreter&, const Value& self, Args& args);
};
const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);
const Builtin* find_global(std::string_view name);
const Builtin* find_method(const Value& self, std::string_view name);
// A method that changes its object, which the sandbox hides.
bool is_mutating_method(const Value& self, std::string_view name);
// A method that Python has and this does not.
bool is_unsupported_method(const Value& self, std::string_view name);

class Interpreter {
 public:
  Interpreter(const Dict& context, const std::tm& now, Budget limits)
      : budget(std::move(limits)), now_(now), context_(context) {}

  Text run(const Body& body);
  int line() const { return line_; }  // of the failure
  const std::tm& now() const { return now_; }

  Budget budget;

  // For the builtins.
  Value fail(std::string message) { return budget.fail(std::move(message)), Value(); }
  Value make(Text text) { return budget.take(2 * text.size()) ? Value(std::move(text)) : Value(); }
  Value make(std::vector<Value> items, Sequence::Kind kind = Sequence::Kind::kList);
  // Before a search whose worst case is the product of both sizes.
  bool charge_search(size_t text_size, size_t wanted_size) {
    return budget.step((text_size / 64 + 1) * (wanted_size / 64 + 1));
  }
  Namespace* make_namespace();
  Text text(const Value& value) { return to_text(value, budget); }
  std::vector<Value> items(const Value& value) { return iterate(value, budget); }
  Value attribute(const Value& object, std::string_view name);  // object.name
  Value item(const Value& object, const Value& key);            // object[key]
  Value call(const Value& callee, Args args);
  Value filter(std::string_view name, const Value& subject, Args args);
  bool test(std::string_view name, const Value& subject, Args args);
  bool contains(const Value& container, const Value& element);
  Value binary(char op, const Value& left, const Value& right);   // + - * / % and f for //, p for **
  Value percent_format(const Text& format, const Value& values);  // format % values
  Value brace_format(const Text& format, const Args& args);       // format.format(*args)
  Value format_value(const Value& value, std::string_view spec);  // format(value, spec)

 private:
  enum class Flow { kNext, kBreak, kContinue };
  static constexpr int kMaxDepth = 700;  // of statements, expressions and macro calls inside each other

  Value eval(const Expr& expr);
  Value eval_inner(const Expr& expr);
  Value eval_compare(const Expr& expr);
  Value eval_slice(const Expr& expr);
  Value eval_call(const Expr& expr, Args extra);
  Args eval_args(const Expr& expr);
  Value lookup(const std::string& name);

  Flow exec(const Body& body);
  Flow exec(const Stmt& stmt);
  Flow exec_for(const Stmt& stmt, const Value& items, int depth0);
  Value call_loop(const Loop& loop, const Args& args);
  void exec_call_block(const Stmt& stmt);
  Flow exec_with(const Stmt& stmt);
  Text captured_output(const Body& body, Flow* flow);  // in a scope of its own
  void write(const Text& text);
  void write_literal(std::string_view text);
  void assign(const Target& target, const Value& value);
  void set_variable(std::string_view name, Value value);  // `name` must outlive the scope: lives in the tree
  static void capture(Scope* scope);
  Value define_macro(const MacroDefinition& macro);
  Value call_macro(const Callable& callable, Args args);
  Value apply_filters(const Expr* expr, Value subject);
  bool bind(std::string_view what, const Builtin& builtin, Args* args);
  std::unique_ptr<Scope> enter(Scope* parent);
  void leave(std::unique_ptr<Scope> scope, Scope* outer);

  std::tm now_;
  const Dict& context_;
  Scope root_;
  Scope* scope_ = &root_;
  Text* out_ = nullptr;
  int line_ = 0;
  int depth_ = 0;
  std::vector<std::unique_ptr<Scope>> kept_scopes_;
  std::deque<Namespace> namespaces_;
  std::deque<Loop> loops_;
};

}  // namespace proa::jinja
