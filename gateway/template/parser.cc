#include "gateway/template/parser.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <optional>

#include "gateway/template/budget.h"
#include "gateway/template/expression_parser.h"
#include "gateway/template/lexer.h"

namespace ferry::jinja {
namespace {

using StatementPtr = std::unique_ptr<const Statement>;

class StatementParser {
 public:
  explicit StatementParser(std::vector<Token> tokens) : tokens_(std::move(tokens)), expressions_(&tokens_) {}

  absl::StatusOr<ParsedTemplate> Run() {
    ASSIGN_OR_RETURN(Block body, ParseBlock({}));
    return ParsedTemplate{std::move(body)};
  }

 private:
  // Statements until a block tag whose name is in `ends`; the parser stops behind that name. Without `ends`, to the end.
  absl::StatusOr<Block> ParseBlock(std::initializer_list<std::string_view> ends) {
    const DepthGuard guard(&depth_);
    const int line = tokens_.current().line;
    if (depth_ > kMaxTreeDepth) return InvalidArgument("line %d: more than %d blocks within one another", line, kMaxTreeDepth);
    Block block;
    while (true) {
      switch (tokens_.current().kind) {
        case TokenKind::kEnd:
          if (ends.size() == 0) return block;
          return InvalidArgument("line %d: the block is not closed: '%s' is missing", line, *(ends.end() - 1));
        case TokenKind::kText:
          block.push_back(TextStatement());
          break;
        case TokenKind::kOutputBegin: {
          ASSIGN_OR_RETURN(StatementPtr output, ParseOutput());
          block.push_back(std::move(output));
          break;
        }
        default: {  // kBlockBegin: the lexer leaves nothing else between tags
          tokens_.Skip();
          const Token name = tokens_.current();
          if (name.kind == TokenKind::kName && std::find(ends.begin(), ends.end(), name.text) != ends.end()) {
            tokens_.Skip();
            return block;
          }
          ASSIGN_OR_RETURN(StatementPtr statement, ParseStatement());
          block.push_back(std::move(statement));
        }
      }
    }
  }

  const std::string& EndName() const { return tokens_.previous().text; }

  absl::Status EndTag() {
    if (tokens_.current().kind != TokenKind::kBlockEnd) return tokens_.Unexpected("the end of the tag");
    tokens_.Skip();
    return absl::OkStatus();
  }

  std::unique_ptr<Statement> New(StatementKind kind) const {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = tokens_.current().line;
    return statement;
  }

  StatementPtr TextStatement() {
    auto statement = New(StatementKind::kText);
    statement->text = tokens_.Take().text;
    return statement;
  }

  absl::StatusOr<StatementPtr> ParseOutput() {
    auto statement = New(StatementKind::kOutput);
    tokens_.Skip();
    ASSIGN_OR_RETURN(statement->expression, expressions_.ParseTuple(/*with_condition=*/true));
    if (tokens_.current().kind != TokenKind::kOutputEnd) return tokens_.Unexpected("an operator or '}}'");
    tokens_.Skip();
    return StatementPtr(std::move(statement));
  }

  absl::StatusOr<StatementPtr> ParseStatement() {
    const Token& name = tokens_.current();
    if (name.kind == TokenKind::kName) {
      if (name.text == "if") return ParseIf();
      if (name.text == "for") return ParseFor();
      if (name.text == "set") return ParseSet();
      if (name.text == "macro") return ParseMacro();
      if (name.text == "generation") return ParseGeneration();
    }
    return InvalidArgument("line %d: '%s' is no statement that chat templates may use here: if, for, set, macro, generation, raw",
                           name.line, name.text);
  }

  absl::StatusOr<StatementPtr> ParseIf() {
    auto statement = New(StatementKind::kIf);
    tokens_.Skip();
    do {
      Statement::Branch branch;
      ASSIGN_OR_RETURN(branch.condition, expressions_.ParseTuple(/*with_condition=*/false));
      RETURN_IF_ERROR(EndTag());
      ASSIGN_OR_RETURN(branch.body, ParseBlock({"elif", "else", "endif"}));
      statement->branches.push_back(std::move(branch));
    } while (EndName() == "elif");
    if (EndName() == "else") {
      RETURN_IF_ERROR(EndTag());
      ASSIGN_OR_RETURN(Block body, ParseBlock({"endif"}));
      statement->branches.push_back({nullptr, std::move(body)});
    }
    RETURN_IF_ERROR(EndTag());
    return StatementPtr(std::move(statement));
  }

  absl::StatusOr<StatementPtr> ParseFor() {
    auto statement = New(StatementKind::kFor);
    tokens_.Skip();
    ASSIGN_OR_RETURN(statement->target, ParseTarget());
    RETURN_IF_ERROR(tokens_.ExpectName("in"));
    ASSIGN_OR_RETURN(statement->expression, expressions_.ParseTuple(/*with_condition=*/false));
    if (tokens_.TakeName("if")) {
      ASSIGN_OR_RETURN(statement->condition, expressions_.Parse(/*with_condition=*/true));
    }
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(statement->body, ParseBlock({"else", "endfor"}));
    if (EndName() == "else") {
      RETURN_IF_ERROR(EndTag());
      ASSIGN_OR_RETURN(statement->otherwise, ParseBlock({"endfor"}));
    }
    RETURN_IF_ERROR(EndTag());
    return StatementPtr(std::move(statement));
  }

  absl::StatusOr<StatementPtr> ParseSet() {
    auto statement = New(StatementKind::kSet);
    tokens_.Skip();
    ASSIGN_OR_RETURN(statement->target, ParseTarget());
    if (tokens_.TakeOperator("=")) {
      ASSIGN_OR_RETURN(statement->expression, expressions_.ParseTuple(/*with_condition=*/true));
      RETURN_IF_ERROR(EndTag());
      return StatementPtr(std::move(statement));
    }
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(statement->body, ParseBlock({"endset"}));
    RETURN_IF_ERROR(EndTag());
    return StatementPtr(std::move(statement));
  }

  absl::StatusOr<Target> ParseTarget() {
    Target target;
    const bool brackets = tokens_.TakeOperator("(");
    while (true) {
      ASSIGN_OR_RETURN(std::string name, ParseNewName());
      target.names.push_back(std::move(name));
      if (target.names.size() == 1 && !brackets && tokens_.TakeOperator(".")) {
        ASSIGN_OR_RETURN(target.attribute, ParseNewName());
        return target;
      }
      if (!tokens_.TakeOperator(",")) break;
      target.unpack = true;
      if (tokens_.current().kind != TokenKind::kName || tokens_.current().text == "in") break;
    }
    if (brackets && !tokens_.TakeOperator(")")) return tokens_.Unexpected("')'");
    return target;
  }

  absl::StatusOr<std::string> ParseNewName() {
    const Token& token = tokens_.current();
    static constexpr std::string_view kReserved[] = {"true", "false", "none", "True", "False", "None", "in",
                                                     "is",   "if",    "else", "and",  "or",    "not"};
    if (token.kind != TokenKind::kName ||
        std::find(std::begin(kReserved), std::end(kReserved), token.text) != std::end(kReserved)) {
      return tokens_.Unexpected("a name");
    }
    return tokens_.Take().text;
  }

  absl::StatusOr<StatementPtr> ParseMacro() {
    auto statement = New(StatementKind::kMacro);
    tokens_.Skip();
    ASSIGN_OR_RETURN(statement->name, ParseNewName());
    if (!tokens_.TakeOperator("(")) return tokens_.Unexpected("'('");
    while (!tokens_.TakeOperator(")")) {
      Parameter parameter;
      ASSIGN_OR_RETURN(parameter.name, ParseNewName());
      if (tokens_.TakeOperator("=")) {
        ASSIGN_OR_RETURN(parameter.default_value, expressions_.Parse(/*with_condition=*/true));
      }
      statement->parameters.push_back(std::move(parameter));
      if (!tokens_.TakeOperator(",") && !tokens_.AtOperator(")")) return tokens_.Unexpected("',' or ')'");
    }
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(statement->body, ParseBlock({"endmacro"}));
    RETURN_IF_ERROR(EndTag());
    return StatementPtr(std::move(statement));
  }

  absl::StatusOr<StatementPtr> ParseGeneration() {
    auto statement = New(StatementKind::kGeneration);
    tokens_.Skip();
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(statement->body, ParseBlock({"endgeneration"}));
    RETURN_IF_ERROR(EndTag());
    return StatementPtr(std::move(statement));
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<ParsedTemplate> Parse(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return StatementParser(std::move(tokens)).Run();
}

}  // namespace ferry::jinja
