#include "gateway/template/template.h"

#include <utility>

#include "coordinator/text/utf8.h"
#include "gateway/template/ast.h"
#include "gateway/template/budget.h"
#include "gateway/template/evaluator.h"
#include "gateway/template/parser.h"
#include "gateway/template/value.h"

namespace ferry::jinja {
namespace {

absl::Status Define(Heap& heap, const nlohmann::ordered_json& variables, bool from_user, Scope* globals) {
  if (!variables.is_object()) return InvalidArgument("the variables of a template are a JSON object");
  for (const auto& [name, json] : variables.items()) {
    ASSIGN_OR_RETURN(Value value, heap.FromJson(json, from_user));
    RETURN_IF_ERROR(heap.SetVariable(globals, name, std::move(value)));
  }
  return absl::OkStatus();
}

}  // namespace

Template::Template(std::unique_ptr<const ParsedTemplate> parsed) : parsed_(std::move(parsed)) {}
Template::~Template() = default;

absl::StatusOr<std::unique_ptr<Template>> Template::Parse(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    return InvalidArgument("the template has %d bytes, at most %d are allowed", source.size(), kMaxTemplateBytes);
  }
  if (!IsValidUtf8(source)) return InvalidArgument("the template is not UTF-8");
  ASSIGN_OR_RETURN(ParsedTemplate parsed, jinja::Parse(source));
  return std::unique_ptr<Template>(new Template(std::make_unique<const ParsedTemplate>(std::move(parsed))));
}

absl::StatusOr<std::vector<TextPiece>> Template::Render(const Variables& variables, absl::Time now, const Limits& limits) const {
  Budget budget(limits);
  Heap heap(&budget);
  ASSIGN_OR_RETURN(Scope* const globals, heap.NewScope(nullptr));
  RETURN_IF_ERROR(Define(heap, variables.from_user, /*from_user=*/true, globals));
  RETURN_IF_ERROR(Define(heap, variables.from_server, /*from_user=*/false, globals));
  Evaluator evaluator(&heap, now);
  ASSIGN_OR_RETURN(const MarkedString text, evaluator.Run(parsed_->body, globals));
  return text.Pieces();
}

}  // namespace ferry::jinja
