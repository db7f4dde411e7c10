// The syntax tree of a template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chat/jinja_value.h"

namespace proa::jinja {

struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using Body = std::vector<Stmt>;

struct Expr {
  enum class Kind {
    kConst,    // constant
    kName,     // name
    kTuple,    // args
    kList,     // args
    kDict,     // args: key, value, key, value ...
    kGetattr,  // args[0] . name
    kGetitem,  // args[0] [ args[1] ]
    kSlice,    // args[0] [ args[1] : args[2] : args[3] ], null where left out
    kCall,     // args[0] ( args[1..], kwargs )
    kFilter,   // args[0] | name ( args[1..], kwargs )
    kTest,     // args[0] is name ( args[1..], kwargs )
    kNot,
    kNegative,
    kPositive,
    kBinary,   // args[0] name args[1], name one of + - * / // % **
    kConcat,   // args joined by ~
    kCompare,  // args[0] operators[0] args[1] operators[1] args[2] ...
    kAnd,
    kOr,
    kConditional,  // args: condition, then, else (may be null)
  };
  Kind kind;
  int line = 0;
  int depth = 1;
  std::string name;
  Value constant;
  std::vector<ExprPtr> args;
  std::vector<std::pair<std::string, ExprPtr>> kwargs;
  ExprPtr star_args;    // f(*x)
  ExprPtr star_kwargs;  // f(**x)
  std::vector<std::string> operators;
};

// A name, a namespace attribute, or a tuple of them.
struct Target {
  std::string name;
  std::string attribute;  // of namespace `name`, when not empty
  std::vector<Target> elements;
};

struct MacroDefinition {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExprPtr> defaults;  // [parameters.size()], null where there is none
  Body body;
  bool takes_varargs = false;  // the body speaks of `varargs`, `kwargs`, `caller`
  bool takes_kwargs = false;
  bool takes_caller = false;
};

struct Stmt {
  enum class Kind {
    kData,         // text
    kOutput,       // expr
    kIf,           // branches: condition (null for else) and body
    kFor,          // target in expr if condition: body, otherwise
    kSet,          // target = expr
    kSetBlock,     // target = body, through the filters of expr when not null
    kMacro,        // macro
    kCallBlock,    // expr with macro as caller
    kFilterBlock,  // body through the filters of expr
    kWith,         // assignments, body
    kScope,        // body in a scope of its own: {% generation %}
    kBreak,
    kContinue,
  };
  Kind kind;
  int line = 0;
  std::string text;
  ExprPtr expr;
  ExprPtr condition;
  bool recursive = false;  // {% for ... recursive %}: the body may call loop(items)
  Target target;
  Body body;
  Body otherwise;
  std::vector<std::pair<ExprPtr, Body>> branches;
  std::vector<std::pair<Target, ExprPtr>> assignments;
  std::unique_ptr<MacroDefinition> macro;
};

}  // namespace proa::jinja
