#include "chat/jinja_eval.h"

#include <algorithm>
#include <cmath>

namespace proa::jinja {

Text Interpreter::run(const Body& body) {
  Text out;
  out_ = &out;
  exec(body);
  return out;
}

Value Interpreter::make(std::vector<Value> items, Sequence::Kind kind) {
  if (!budget.take(sizeof(Value) * items.size() + sizeof(Sequence))) return Value();
  return Value(Sequence::list(std::move(items), kind));
}

Namespace* Interpreter::make_namespace() {
  budget.take(256);
  return &namespaces_.emplace_back();
}

// ---- statements

Interpreter::Flow Interpreter::exec(const Body& body) {
  for (const Stmt& stmt : body) {
    if (const Flow flow = exec(stmt); flow != Flow::kNext) return flow;
    if (budget.failed()) break;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const Stmt& stmt) {
  if (!budget.step()) return Flow::kNext;
  line_ = stmt.line;
  if (depth_ >= kMaxDepth) return budget.fail("template nests or calls too deeply"), Flow::kNext;
  ++depth_;
  Flow flow = Flow::kNext;
  switch (stmt.kind) {
    case Stmt::Kind::kData:
      write_literal(stmt.text);
      break;
    case Stmt::Kind::kOutput: {
      const Value value = eval(*stmt.expr);
      if (value.text()) {
        write(*value.text());
      } else {
        write(text(value));
      }
      break;
    }
    case Stmt::Kind::kIf:
      for (const auto& [condition, body] : stmt.branches) {
        if (condition && !eval(*condition).truthy()) continue;
        if (!budget.failed()) flow = exec(body);
        break;
      }
      break;
    case Stmt::Kind::kFor:
      flow = exec_for(stmt, eval(*stmt.expr), 0);
      break;
    case Stmt::Kind::kSet:
      assign(stmt.target, eval(*stmt.expr));
      break;
    case Stmt::Kind::kSetBlock: {
      Value value = make(captured_output(stmt.body, &flow));
      if (flow == Flow::kNext) assign(stmt.target, apply_filters(stmt.expr.get(), std::move(value)));
      break;
    }
    case Stmt::Kind::kMacro:
      set_variable(stmt.macro->name, define_macro(*stmt.macro));
      break;
    case Stmt::Kind::kCallBlock:
      exec_call_block(stmt);
      break;
    case Stmt::Kind::kFilterBlock: {
      Value body = make(captured_output(stmt.body, &flow));
      if (flow != Flow::kNext) break;
      const Value value = apply_filters(stmt.expr.get(), std::move(body));
      if (!value.text()) return fail(std::string("expected a string from the filter, found ") + value.type()), flow;
      write(*value.text());
      break;
    }
    case Stmt::Kind::kWith:
      flow = exec_with(stmt);
      break;
    case Stmt::Kind::kScope:
      write(captured_output(stmt.body, &flow));
      break;
    case Stmt::Kind::kBreak:
      flow = Flow::kBreak;
      break;
    case Stmt::Kind::kContinue:
      flow = Flow::kContinue;
      break;
  }
  --depth_;
  return flow;
}

std::unique_ptr<Scope> Interpreter::enter(Scope* parent) {
  auto scope = std::make_unique<Scope>();
  scope->parent = parent;
  scope_ = scope.get();
  return scope;
}

void Interpreter::leave(std::unique_ptr<Scope> scope, Scope* outer) {
  scope_ = outer;
  if (scope->captured) kept_scopes_.push_back(std::move(scope));
}

Interpreter::Flow Interpreter::exec_for(const Stmt& stmt, const Value& iterated, int depth0) {
  std::vector<Value> found = items(iterated);
  Scope* outer = scope_;
  if (stmt.condition) {
    std::vector<Value> kept;
    for (Value& item : found) {
      if (!budget.step()) break;
      auto scope = enter(outer);
      assign(stmt.target, item);
      if (eval(*stmt.condition).truthy()) kept.push_back(std::move(item));
      leave(std::move(scope), outer);
    }
    found = std::move(kept);
  }
  if (budget.failed()) return Flow::kNext;
  budget.take(sizeof(Loop));
  Loop& loop = loops_.emplace_back();
  loop.items = std::move(found);
  loop.length = loop.items.size();
  loop.depth0 = depth0;
  if (stmt.recursive) {
    loop.statement = &stmt;
    loop.scope = outer;
    capture(outer);
  }
  bool any_ran_through = false;
  for (loop.index = 0; loop.index < loop.length && !budget.failed(); ++loop.index) {
    auto scope = enter(outer);
    set_variable("loop", Value(&loop));
    assign(stmt.target, loop.items[loop.index]);
    const Flow flow = exec(stmt.body);
    leave(std::move(scope), outer);
    if (flow == Flow::kBreak) break;
    any_ran_through = any_ran_through || flow == Flow::kNext;
  }
  // A template may have kept `loop`; the object stays, what it holds does not.
  loop.items.clear();
  loop.items.shrink_to_fit();
  loop.last_changed.reset();
  // As Jinja has it: `else` also follows when every iteration ended with break or continue.
  if (any_ran_through || budget.failed()) return Flow::kNext;
  auto scope = enter(outer);
  const Flow flow = exec(stmt.otherwise);
  leave(std::move(scope), outer);
  return flow;
}

void Interpreter::exec_call_block(const Stmt& stmt) {
  Args extra;
  extra.named.emplace_back("caller", define_macro(*stmt.macro));
  write(text(eval_call(*stmt.expr, std::move(extra))));
}

Interpreter::Flow Interpreter::exec_with(const Stmt& stmt) {
  Scope* outer = scope_;
  auto scope = enter(outer);
  for (const auto& [target, expr] : stmt.assignments) {
    scope_ = outer;  // the values do not see each other
    const Value value = eval(*expr);
    scope_ = scope.get();
    assign(target, value);
  }
  const Flow flow = exec(stmt.body);
  leave(std::move(scope), outer);
  return flow;
}

Text Interpreter::captured_output(const Body& body, Flow* flow) {
  Text out;
  Text* outer_out = std::exchange(out_, &out);
  Scope* outer = scope_;
  auto scope = enter(outer);
  *flow = exec(body);
  leave(std::move(scope), outer);
  out_ = outer_out;
  return out;
}

void Interpreter::write(const Text& text) {
  if (budget.take(2 * text.size())) out_->append(text);
}

void Interpreter::write_literal(std::string_view text) {
  if (budget.take(2 * text.size())) out_->append(text, Origin::kTemplate);
}

void Interpreter::set_variable(std::string_view name, Value value) {
  for (auto& [known, old] : scope_->variables) {
    if (known == name) {
      old = std::move(value);
      return;
    }
  }
  scope_->variables.emplace_back(name, std::move(value));
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (budget.failed()) return;
  if (!target.elements.empty()) {
    const std::vector<Value> values = items(value);
    if (values.size() != target.elements.size()) {
      return budget.fail("cannot unpack " + std::to_string(values.size()) + " values into " +
                         std::to_string(target.elements.size()) + " names");
    }
    for (size_t i = 0; i < values.size(); ++i) assign(target.elements[i], values[i]);
    return;
  }
  if (target.attribute.empty()) return set_variable(target.name, value);
  Namespace* ns = lookup(target.name).ns();
  if (!ns) return budget.fail("cannot assign attribute on non-namespace object");
  if (target.attribute[0] == '_') return budget.fail("cannot store underscore-prefixed attributes on a namespace");
  for (auto& [name, old] : ns->attributes) {
    if (name == target.attribute) {
      old = value;
      return;
    }
  }
  budget.take(64);
  ns->attributes.emplace_back(target.attribute, value);
}

void Interpreter::capture(Scope* scope) {
  for (; scope && !scope->captured; scope = scope->parent) scope->captured = true;
}

Value Interpreter::define_macro(const MacroDefinition& macro) {
  budget.take(256);
  capture(scope_);
  return Value(
      Callable{.kind = Callable::Kind::kMacro, .name = macro.name, .self = Value(), .macro = &macro, .scope = scope_});
}

Value Interpreter::call_macro(const Callable& callable, Args args) {
  const MacroDefinition& macro = *callable.macro;
  if (depth_ >= kMaxDepth) return fail("template nests or calls too deeply");
  ++depth_;
  Scope* outer = scope_;
  auto scope = enter(callable.scope);
  Text out;
  Text* outer_out = std::exchange(out_, &out);

  const size_t count = macro.parameters.size();
  if (args.positional.size() > count && !macro.takes_varargs) {
    fail("macro '" + macro.name + "' takes not more than " + std::to_string(count) + " argument(s)");
  }
  Value caller = Value::undefined("'caller' is undefined");
  Dict kwargs;
  for (auto& [name, value] : args.named) {
    const auto found = std::find(macro.parameters.begin(), macro.parameters.end(), name);
    const size_t index = static_cast<size_t>(found - macro.parameters.begin());
    if (found != macro.parameters.end()) {
      if (index < args.positional.size()) {
        fail("macro '" + macro.name + "' got multiple values for argument '" + *found + "'");
      }
    } else if (name == "caller" && macro.takes_caller) {
      caller = value;
    } else if (macro.takes_kwargs) {
      kwargs.set(Value(Text(name, args.name_origin)), value, budget);
    } else {
      fail("macro '" + macro.name + "' takes no keyword argument '" + std::string(name) + "'");
    }
  }
  for (size_t i = 0; i < count && !budget.failed(); ++i) {
    const std::string& name = macro.parameters[i];
    const auto named =
        std::find_if(args.named.begin(), args.named.end(), [&](const auto& pair) { return pair.first == name; });
    if (i < args.positional.size()) {
      set_variable(name, args.positional[i]);
    } else if (named != args.named.end()) {
      set_variable(name, named->second);
    } else if (macro.defaults[i]) {
      set_variable(name, eval(*macro.defaults[i]));
    } else {
      set_variable(name, Value::undefined("parameter '" + name + "' was not provided"));
    }
  }
  if (macro.takes_varargs) {
    std::vector<Value> rest;
    for (size_t i = count; i < args.positional.size(); ++i) rest.push_back(args.positional[i]);
    set_variable("varargs", make(std::move(rest), Sequence::Kind::kTuple));
  }
  if (macro.takes_kwargs) set_variable("kwargs", Value(std::move(kwargs)));
  if (macro.takes_caller) set_variable("caller", std::move(caller));
  exec(macro.body);

  out_ = outer_out;
  leave(std::move(scope), outer);
  --depth_;
  return make(std::move(out));
}

// loop(items): the body of the recursive loop again, one level deeper, as text.
Value Interpreter::call_loop(const Loop& loop, const Args& args) {
  if (!loop.statement) return fail("The loop must have the 'recursive' marker to be called recursively.");
  if (args.positional.size() != 1 || !args.named.empty()) return fail("loop() takes the items to go through");
  if (depth_ >= kMaxDepth) return fail("template nests or calls too deeply");
  ++depth_;
  Scope* outer = std::exchange(scope_, loop.scope);
  Text out;
  Text* outer_out = std::exchange(out_, &out);
  exec_for(*loop.statement, args[0], loop.depth0 + 1);
  out_ = outer_out;
  scope_ = outer;
  --depth_;
  return make(std::move(out));
}

Value Interpreter::apply_filters(const Expr* expr, Value subject) {
  if (!expr) return subject;
  if (expr->args[0]) subject = apply_filters(expr->args[0].get(), std::move(subject));
  return filter(expr->name, subject, eval_args(*expr));
}

// ---- expressions

Value Interpreter::eval(const Expr& expr) {
  if (!budget.step()) return Value();
  line_ = expr.line;
  if (expr.kind == Expr::Kind::kConst) return expr.constant;
  if (expr.kind == Expr::Kind::kName) return lookup(expr.name);
  if (depth_ >= kMaxDepth) return fail("template nests or calls too deeply");
  ++depth_;
  Value value = eval_inner(expr);
  --depth_;
  if (value.depth() > kMaxValueDepth) return fail("value is nested too deeply");
  return value;
}

Value Interpreter::eval_inner(const Expr& expr) {
  const auto arg = [&](size_t i) { return eval(*expr.args[i]); };
  switch (expr.kind) {
    case Expr::Kind::kConst:
    case Expr::Kind::kName:
      break;  // done by eval()
    case Expr::Kind::kTuple:
    case Expr::Kind::kList: {
      std::vector<Value> values;
      for (const ExprPtr& item : expr.args) values.push_back(eval(*item));
      return make(std::move(values), expr.kind == Expr::Kind::kTuple ? Sequence::Kind::kTuple : Sequence::Kind::kList);
    }
    case Expr::Kind::kDict: {
      Dict dict;
      for (size_t i = 0; i + 1 < expr.args.size(); i += 2) {
        Value key = arg(i);
        dict.set(std::move(key), arg(i + 1), budget);
      }
      return Value(std::move(dict));
    }
    case Expr::Kind::kGetattr:
      return attribute(arg(0), expr.name);
    case Expr::Kind::kGetitem: {
      const Value object = arg(0);
      return item(object, arg(1));
    }
    case Expr::Kind::kSlice:
      return eval_slice(expr);
    case Expr::Kind::kCall:
      return eval_call(expr, {});
    case Expr::Kind::kFilter: {
      const Value subject = arg(0);
      return filter(expr.name, subject, eval_args(expr));
    }
    case Expr::Kind::kTest: {
      const Value subject = arg(0);
      return Value(test(expr.name, subject, eval_args(expr)));
    }
    case Expr::Kind::kNot:
      return Value(!arg(0).truthy());
    case Expr::Kind::kNegative: {
      const Value value = arg(0);
      if (value.is<double>()) return Value(-value.real());
      return binary('-', Value(0), value);
    }
    case Expr::Kind::kPositive:
      return binary('+', Value(0), arg(0));
    case Expr::Kind::kBinary: {
      const Value left = arg(0);
      const char op = expr.name == "//" ? 'f' : expr.name == "**" ? 'p' : expr.name[0];
      return binary(op, left, arg(1));
    }
    case Expr::Kind::kConcat: {
      Text out;
      for (const ExprPtr& part : expr.args) out.append(text(eval(*part)));
      return make(std::move(out));
    }
    case Expr::Kind::kCompare:
      return eval_compare(expr);
    case Expr::Kind::kAnd: {
      Value left = arg(0);
      return left.truthy() ? arg(1) : left;
    }
    case Expr::Kind::kOr: {
      Value left = arg(0);
      return left.truthy() ? left : arg(1);
    }
    case Expr::Kind::kConditional:
      if (arg(0).truthy()) return arg(1);
      if (expr.args[2]) return arg(2);
      return Value::undefined("the inline if-expression evaluated to false and no else section was defined");
  }
  return Value();
}

Value Interpreter::eval_compare(const Expr& expr) {
  Value left = eval(*expr.args[0]);
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    Value right = eval(*expr.args[i + 1]);
    const std::string& op = expr.operators[i];
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = equals(left, right, budget) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = contains(right, left) == (op == "in");
    } else {
      const int order = compare(left, right, budget);
      const bool nan =
          (left.is<double>() && std::isnan(left.real())) || (right.is<double>() && std::isnan(right.real()));
      holds = !nan && (op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0);
    }
    if (!holds || budget.failed()) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Interpreter::eval_slice(const Expr& expr) {
  const Value object = eval(*expr.args[0]);
  std::optional<int64_t> bounds[3];
  for (int i = 0; i < 3; ++i) {
    if (!expr.args[i + 1]) continue;
    const Value value = eval(*expr.args[i + 1]);
    if (value.is_none()) continue;
    if (!value.is_integer()) return fail("slice indices must be integers or None");
    bounds[i] = value.integer();
  }
  const int64_t step = bounds[2].value_or(1);
  if (step == 0) return fail("slice step cannot be zero");
  if (object.is_undefined()) return fail(object.undefined_message());
  const Text* string = object.text();
  const Sequence* sequence = object.sequence();
  if (!string && !(sequence && sequence->has_positions())) {
    return fail(std::string("'") + object.type() + "' object cannot be sliced");
  }
  const bool ascii = string && is_ascii(string->bytes);
  const std::vector<size_t> offsets = string && !ascii ? character_offsets(string->bytes) : std::vector<size_t>();
  const int64_t length = static_cast<int64_t>(sequence ? sequence->items.size()
                                              : ascii  ? string->size()
                                                       : offsets.size() - 1);
  if (!budget.step(static_cast<uint64_t>(length) / 16)) return Value();

  // Python's slice.indices().
  const int64_t lowest = step < 0 ? -1 : 0;
  const int64_t highest = step < 0 ? length - 1 : length;
  const auto place = [&](std::optional<int64_t> bound, int64_t otherwise) {
    if (!bound) return otherwise;
    const int64_t index = *bound < 0 ? *bound + length : *bound;
    return std::clamp(index, lowest, highest);
  };
  const int64_t begin = place(bounds[0], step < 0 ? highest : lowest);
  const int64_t end = place(bounds[1], step < 0 ? lowest : highest);

  if (string && step == 1) {
    if (begin >= end) return Value(Text());
    const size_t from = ascii ? static_cast<size_t>(begin) : offsets[begin];
    const size_t to = ascii ? static_cast<size_t>(end) : offsets[end];
    return make(string->slice(from, to - from));
  }
  Text text;
  std::vector<Value> items;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (!budget.step()) return Value();
    if (string) {
      text.append(*string, ascii ? i : offsets[i], ascii ? 1 : offsets[i + 1] - offsets[i]);
    } else {
      items.push_back(sequence->items[i]);
    }
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (string) return make(std::move(text));
  if (sequence->kind != Sequence::Kind::kRange) return make(std::move(items), sequence->kind);
  if (!budget.take(sizeof(Value) * items.size() + sizeof(Sequence))) return Value();
  Sequence range = Sequence::list(std::move(items), sequence->kind);
  const auto at = [&](int64_t index, int64_t& value) {
    return !__builtin_mul_overflow(index, sequence->step, &value) &&
           !__builtin_add_overflow(sequence->start, value, &value);
  };
  if (__builtin_mul_overflow(sequence->step, step, &range.step) || !at(begin, range.start) || !at(end, range.stop)) {
    return fail("integers beyond 64 bits are not supported");
  }
  return Value(std::move(range));
}

Args Interpreter::eval_args(const Expr& expr) {
  Args args;
  for (size_t i = 1; i < expr.args.size(); ++i) args.positional.push_back(eval(*expr.args[i]));
  for (const auto& [name, value] : expr.kwargs) args.named.emplace_back(name, eval(*value));
  if (expr.star_args) {
    const Value rest = eval(*expr.star_args);
    for (Value& value : items(rest)) args.positional.push_back(std::move(value));
  }
  if (expr.star_kwargs) {
    args.unpacked = eval(*expr.star_kwargs);
    const Dict* dict = args.unpacked.dict();
    if (!dict) return fail("argument after ** must be a mapping, not " + std::string(args.unpacked.type())), args;
    for (const auto& [name, value] : dict->entries) {
      if (!name.text()) return fail("keywords must be strings"), args;
      if (name.text()->any_input()) args.name_origin = Origin::kInput;
      const auto same = [&, key = &name](const auto& pair) { return pair.first == key->text()->bytes; };
      if (std::any_of(args.named.begin(), args.named.end(), same)) {
        return fail("got multiple values for keyword argument '" + name.text()->bytes + "'"), args;
      }
      args.named.emplace_back(name.text()->bytes, value);
    }
  }
  return args;
}

Value Interpreter::eval_call(const Expr& expr, Args extra) {
  const Value callee = eval(*expr.args[0]);
  if (budget.failed()) return Value();
  Args args = eval_args(expr);
  for (auto& pair : extra.named) args.named.push_back(std::move(pair));
  if (budget.failed()) return Value();
  return call(callee, std::move(args));
}

Value Interpreter::lookup(const std::string& name) {
  for (const Scope* scope = scope_; scope; scope = scope->parent) {
    for (const auto& [known, value] : scope->variables) {
      if (known == name) return value;
    }
  }
  if (const Value* value = context_.find(name)) return *value;
  if (find_global(name)) {
    return Value(
        Callable{.kind = Callable::Kind::kFunction, .name = name, .self = Value(), .macro = nullptr, .scope = nullptr});
  }
  return Value::undefined("'" + name + "' is undefined");
}

namespace {

std::string no_attribute(const Value& object, std::string_view name) {
  const std::string type = object.is_none() ? "None" : std::string(object.type()) + " object";
  return "'" + type + "' has no attribute '" + std::string(name) + "'";
}

Value loop_attribute(const Loop& loop, std::string_view name) {
  const bool live = loop.index < loop.items.size();
  if (name == "index") return Value(loop.index + 1);
  if (name == "index0") return Value(loop.index);
  if (name == "revindex") return Value(static_cast<int64_t>(loop.length) - static_cast<int64_t>(loop.index));
  if (name == "revindex0") return Value(static_cast<int64_t>(loop.length) - static_cast<int64_t>(loop.index) - 1);
  if (name == "first") return Value(loop.index == 0);
  if (name == "last") return Value(loop.index + 1 >= loop.length);
  if (name == "length") return Value(loop.length);
  if (name == "depth") return Value(loop.depth0 + 1);
  if (name == "depth0") return Value(loop.depth0);
  if (name == "previtem") {
    return live && loop.index > 0 ? loop.items[loop.index - 1] : Value::undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return live && loop.index + 1 < loop.items.size() ? loop.items[loop.index + 1]
                                                      : Value::undefined("there is no next item");
  }
  return Value::missing();
}

}  // namespace

Value Interpreter::attribute(const Value& object, std::string_view name) {
  if (budget.failed()) return Value();
  if (object.is_undefined()) return fail(object.undefined_message());
  if (const Namespace* ns = object.ns()) {
    for (const auto& [known, value] : ns->attributes) {
      if (known == name) return value;
    }
    return Value::undefined(no_attribute(object, name));
  }
  if (const Loop* loop = object.loop()) {
    if (Value value = loop_attribute(*loop, name); !value.is_missing()) return value;
  }
  if (is_mutating_method(object, name)) {
    return Value::undefined("access to attribute '" + std::string(name) + "' of '" + object.type() +
                            "' object is unsafe");
  }
  if (find_method(object, name)) {
    if (!budget.take(sizeof(Callable))) return Value();
    return Value(Callable{.kind = Callable::Kind::kMethod,
                          .name = std::string(name),
                          .self = object,
                          .macro = nullptr,
                          .scope = nullptr});
  }
  if (const Dict* dict = object.dict()) {
    if (const Value* value = dict->find(name)) return *value;
  }
  if (const Sequence* sequence = object.sequence(); sequence && sequence->is_group) {
    if (name == "grouper") return sequence->items[0];
    if (name == "list") return sequence->items[1];
  }
  if (is_unsupported_method(object, name)) {
    return fail("the method '" + std::string(name) + "' of '" + object.type() + "' is not supported");
  }
  return Value::undefined(no_attribute(object, name));
}

Value Interpreter::item(const Value& object, const Value& key) {
  if (budget.failed()) return Value();
  if (object.is_undefined()) return fail(object.undefined_message());
  if (const Dict* dict = object.dict()) {
    if (const Value* value = dict->find(key, budget)) return *value;
  } else if (key.is_integer()) {
    const Sequence* sequence = object.sequence();
    const Text* string = object.text();
    if (string || (sequence && sequence->has_positions())) {
      std::vector<size_t> offsets;
      if (string && !is_ascii(string->bytes)) {
        if (!budget.step(string->size() / 16)) return Value();
        offsets = character_offsets(string->bytes);
      }
      const size_t length = sequence ? sequence->items.size() : offsets.empty() ? string->size() : offsets.size() - 1;
      const int64_t index = key.integer() < 0 ? key.integer() + static_cast<int64_t>(length) : key.integer();
      if (index >= 0 && index < static_cast<int64_t>(length)) {
        if (sequence) return sequence->items[index];
        return offsets.empty() ? make(string->slice(index, 1))
                               : make(string->slice(offsets[index], offsets[index + 1] - offsets[index]));
      }
    }
  }
  if (const Text* name = key.text()) {
    return object.dict() && !find_method(object, name->bytes) ? Value::undefined(no_attribute(object, name->bytes))
                                                              : attribute(object, name->bytes);
  }
  return Value::undefined(std::string(object.type()) + " object has no element " + repr(key, budget).bytes);
}

bool Interpreter::bind(std::string_view what, const Builtin& builtin, Args* args) {
  if (builtin.parameters == "*") return !budget.failed();
  std::vector<std::string_view> names;
  for (size_t at = 0; at < builtin.parameters.size();) {
    const size_t end = std::min(builtin.parameters.find(' ', at), builtin.parameters.size());
    names.push_back(builtin.parameters.substr(at, end - at));
    at = end + 1;
  }
  if (args->positional.size() > names.size()) {
    return fail(std::string(what) + " takes at most " + std::to_string(names.size()) + " arguments"), false;
  }
  args->positional.resize(names.size(), Value::missing());
  for (auto& [name, value] : args->named) {
    const size_t index = static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
    if (index == names.size() || !args->positional[index].is_missing()) {
      return fail(std::string(what) + " got an unexpected argument '" + std::string(name) + "'"), false;
    }
    args->positional[index] = std::move(value);
  }
  for (size_t i = 0; i < builtin.required; ++i) {
    if (args->positional[i].is_missing()) {
      return fail(std::string(what) + " misses its argument '" + std::string(names[i]) + "'"), false;
    }
  }
  return !budget.failed();
}

Value Interpreter::call(const Value& callee, Args args) {
  if (budget.failed()) return Value();
  if (callee.is_undefined()) return fail(callee.undefined_message());
  if (const Loop* loop = callee.loop()) return call_loop(*loop, args);
  const Callable* callable = callee.callable();
  if (!callable) return fail(std::string("'") + callee.type() + "' object is not callable");
  if (callable->kind == Callable::Kind::kMacro) return call_macro(*callable, std::move(args));
  const Builtin* builtin = callable->kind == Callable::Kind::kFunction ? find_global(callable->name)
                                                                       : find_method(callable->self, callable->name);
  if (!builtin || !bind(callable->name + "()", *builtin, &args)) return Value();
  return builtin->function(*this, callable->self, args);
}

Value Interpreter::filter(std::string_view name, const Value& subject, Args args) {
  const Builtin* builtin = find_filter(name);
  if (!builtin) return fail("no filter named '" + std::string(name) + "'");
  if (!bind(name, *builtin, &args)) return Value();
  return builtin->function(*this, subject, args);
}

bool Interpreter::test(std::string_view name, const Value& subject, Args args) {
  const Builtin* builtin = find_test(name);
  if (!builtin) return fail("no test named '" + std::string(name) + "'"), false;
  return bind(name, *builtin, &args) && builtin->function(*this, subject, args).truthy();
}

bool Interpreter::contains(const Value& container, const Value& element) {
  if (const Text* text = container.text()) {
    if (!element.text()) {
      return fail(std::string("'in <string>' requires string as left operand, not ") + element.type()), false;
    }
    return charge_search(text->size(), element.text()->size()) &&
           text->bytes.find(element.text()->bytes) != std::string::npos;
  }
  if (const Dict* dict = container.dict()) {
    if (!is_hashable(element)) return fail(std::string("unhashable type: '") + element.type() + "'"), false;
    return dict->find(element, budget) != nullptr;
  }
  if (const Sequence* sequence = container.sequence()) {
    const bool once = sequence->kind == Sequence::Kind::kGenerator;
    for (size_t i = once ? sequence->taken : 0; i < sequence->items.size(); ++i) {
      if (once) sequence->taken = i + 1;
      if (equals(sequence->items[i], element, budget)) return true;
      if (budget.failed()) break;
    }
    return false;
  }
  if (!container.is_undefined()) fail(std::string("argument of type '") + container.type() + "' is not iterable");
  return false;
}

// ---- operators

namespace {

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

}  // namespace

Value Interpreter::binary(char op, const Value& left, const Value& right) {
  if (budget.failed()) return Value();
  if (op == '%' && left.text()) return percent_format(*left.text(), right);
  for (const Value* side : {&left, &right}) {
    if (side->is_undefined()) return fail(side->undefined_message());
  }
  if (left.is_integer() && right.is_integer() && op != '/' && !(op == 'p' && right.integer() < 0)) {
    const int64_t a = left.integer();
    const int64_t b = right.integer();
    int64_t result = 0;
    bool overflow = false;
    switch (op) {
      case '+':
        overflow = __builtin_add_overflow(a, b, &result);
        break;
      case '-':
        overflow = __builtin_sub_overflow(a, b, &result);
        break;
      case '*':
        overflow = __builtin_mul_overflow(a, b, &result);
        break;
      case 'p': {
        result = 1;
        int64_t base = a;
        for (int64_t exponent = b; exponent > 0 && !overflow; exponent /= 2) {
          if (exponent % 2) overflow = __builtin_mul_overflow(result, base, &result);
          if (exponent > 1) overflow = overflow || __builtin_mul_overflow(base, base, &base);
        }
        break;
      }
      default:
        if (b == 0) return fail("integer division or modulo by zero");
        if (b == -1) {
          overflow = op == 'f' && __builtin_sub_overflow(int64_t{0}, a, &result);
        } else {
          result = op == 'f' ? floor_div(a, b) : a - floor_div(a, b) * b;
        }
    }
    if (overflow) return fail("integer overflow");
    return Value(result);
  }
  if (left.is_number() && right.is_number()) {
    const double a = left.real();
    const double b = right.real();
    if ((op == '/' || op == 'f' || op == '%') && b == 0) return fail("division by zero");
    switch (op) {
      case '+':
        return Value(a + b);
      case '-':
        return Value(a - b);
      case '*':
        return Value(a * b);
      case '/':
        return Value(a / b);
      case 'f':
        return Value(std::floor(a / b));
      case 'p':
        if (a == 0 && b < 0) return fail("zero cannot be raised to a negative power");
        return Value(std::pow(a, b));
      default: {
        double rest = std::fmod(a, b);
        if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
        return Value(rest);
      }
    }
  }
  if (op == '+' && left.text() && right.text()) {
    if (!budget.take(2 * (left.text()->size() + right.text()->size()))) return Value();
    Text out = *left.text();
    out.append(*right.text());
    return Value(std::move(out));
  }
  const Sequence* a = left.sequence();
  const Sequence* b = right.sequence();
  if (op == '+' && a && b && a->kind == b->kind &&
      (a->kind == Sequence::Kind::kList || a->kind == Sequence::Kind::kTuple)) {
    const size_t count = a->items.size() + b->items.size();
    if (!budget.step(count) || !budget.take(sizeof(Value) * count)) return Value();
    std::vector<Value> items;
    items.reserve(count);
    items.insert(items.end(), a->items.begin(), a->items.end());
    items.insert(items.end(), b->items.begin(), b->items.end());
    return make(std::move(items), a->kind);
  }
  if (op == '*' && (left.is_integer() || right.is_integer())) {
    const Value& repeated = left.is_integer() ? right : left;
    const uint64_t count = static_cast<uint64_t>(std::max<int64_t>(0, (left.is_integer() ? left : right).integer()));
    if (const Text* text = repeated.text()) {
      if (text->size() > 0 && (count > (1ull << 40) || !budget.take(2 * count * text->size()))) {
        return fail("template makes too much data");
      }
      Text out;
      for (uint64_t i = 0; i < count && text->size() > 0; ++i) out.append(*text);
      return Value(std::move(out));
    }
    if (const Sequence* list = repeated.sequence();
        list && (list->kind == Sequence::Kind::kList || list->kind == Sequence::Kind::kTuple)) {
      std::vector<Value> items;
      if (!list->items.empty()) {
        if (count > (1ull << 32) || !budget.step(count * list->items.size()) ||
            !budget.take(count * list->items.size() * sizeof(Value))) {
          return fail("template makes too much data");
        }
        for (uint64_t i = 0; i < count; ++i) items.insert(items.end(), list->items.begin(), list->items.end());
      }
      return make(std::move(items), list->kind);
    }
  }
  if (op == '+' && left.text())
    return fail(std::string("can only concatenate str (not \"") + right.type() + "\") to str");
  const std::string name = op == 'f' ? "//" : op == 'p' ? "**" : std::string(1, op);
  return fail("unsupported operand type(s) for " + name + ": '" + left.type() + "' and '" + right.type() + "'");
}

}  // namespace proa::jinja
