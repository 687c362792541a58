#pragma once

// A template as a tree.

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace ferry::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<const Expression>;

enum class ExpressionKind {
  kLiteral,    // literal
  kName,       // name
  kList,       // children
  kTuple,      // children
  kDict,       // children: key, value, key, value, ...
  kUnary,      // name: "-" "+" "not"; children[0]
  kBinary,     // name: "+" "-" "*" "/" "//" "%" "**" "and" "or"; children[0], children[1]
  kConcat,     // children, joined by ~
  kCompare,    // children[0] names[0] children[1] names[1] ...: "==" "!=" "<" "<=" ">" ">=" "in" "not in"
  kCondition,  // children[0] if children[1] else children[2] (may be missing)
  kAttribute,  // children[0] . name
  kSubscript,  // children[0] [ children[1] ]
  kSlice,      // children[0] [ children[1] : children[2] : children[3] ]; null where nothing is written
  kCall,       // children[0] ( the others, keywords )
  kFilter,     // children[0] | name ( the others, keywords )
  kTest,       // children[0] is name ( the others, keywords )
};

// std::monostate: none.
using Literal = std::variant<std::monostate, bool, int64_t, double, std::string>;

struct Expression {
  ExpressionKind kind;
  int line = 0;
  int depth = 1;  // of the tree below it; bounded by the parser
  Literal literal;
  std::string name;
  std::vector<std::string> names;
  std::vector<ExpressionPtr> children;
  std::vector<std::pair<std::string, ExpressionPtr>> keywords;
};

struct Statement;
using Block = std::vector<std::unique_ptr<const Statement>>;

// The target of an assignment: one name, one attribute of a namespace, or several names that a value is unpacked into.
struct Target {
  std::vector<std::string> names;
  bool unpack = false;
  std::string attribute;  // of names[0]; empty: the name itself
};

struct Parameter {
  std::string name;
  ExpressionPtr default_value;  // null: undefined when it is not given
};

enum class StatementKind {
  kText,        // text
  kOutput,      // expression
  kIf,          // branches
  kFor,         // for target in expression if condition: body, otherwise
  kSet,         // target = expression; without an expression what body renders
  kMacro,       // name(parameters): body
  kGeneration,  // body: the part that the model writes, which makes no difference here
};

struct Statement {
  struct Branch {
    ExpressionPtr condition;  // null: else
    Block body;
  };

  StatementKind kind;
  int line = 0;
  std::string text, name;
  ExpressionPtr expression, condition;
  Target target;
  std::vector<Parameter> parameters;
  std::vector<Branch> branches;
  Block body, otherwise;
};

struct ParsedTemplate {
  Block body;
};

}  // namespace ferry::jinja
