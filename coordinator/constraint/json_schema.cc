#include "coordinator/constraint/json_schema.h"

#include <deque>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/constraint/json_terms.h"
#include "coordinator/constraint/number_range.h"
#include "coordinator/constraint/schema_keywords.h"

namespace ferry::constraint {
namespace {

constexpr int kMaxDepth = 64;
constexpr int kMaxSubschemas = 20'000;
constexpr int64_t kMaxMergedValues = 1'000'000;  // merging copies them
constexpr int64_t kMaxItems = 10'000;

const std::set<std::string> kTypes = {"null", "boolean", "object", "array", "number", "string", "integer"};

std::string Dump(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

// The type that a value has in a schema's terms.
bool HasType(const Json& value, const std::set<std::string>& types) {
  if (value.is_null()) return types.contains("null");
  if (value.is_boolean()) return types.contains("boolean");
  if (value.is_string()) return types.contains("string");
  if (value.is_array()) return types.contains("array");
  if (value.is_object()) return types.contains("object");
  return types.contains("number") || (types.contains("integer") && value.is_number_integer());
}

// It and all within it.
int64_t NumValues(const Json& value) {
  int64_t count = 1;
  if (value.is_structured()) {
    for (const Json& part : value) count += NumValues(part);
  }
  return count;
}

class SchemaCompiler {
 public:
  explicit SchemaCompiler(const Json* root) : root_(*root), terms_(&grammar_) {}

  absl::StatusOr<Grammar> Compile() {
    ASSIGN_OR_RETURN(const RuleId root, RuleOfRef("#", "#"));
    grammar_.SetRoot(root);
    while (!left_.empty()) {
      const Pending next = std::move(left_.front());
      left_.pop_front();
      ASSIGN_OR_RETURN(const ExprId expr, Value(*next.schema, next.pointer, 0));
      grammar_.SetRule(next.rule, expr);
    }
    return std::move(grammar_);
  }

 private:
  struct Pending {
    RuleId rule;
    const Json* schema;
    std::string pointer;
  };

  absl::StatusOr<const Json*> Find(const std::string& ref, const std::string& pointer) const {
    if (ref.empty() || ref[0] != '#' || (ref.size() > 1 && ref[1] != '/')) {
      return InvalidArgument("%s/$ref: %s is not a pointer within the schema (#/...)", pointer, ref);
    }
    const Json* place = &root_;
    try {  // the library says by an exception that it cannot read a pointer
      place = &root_.at(Json::json_pointer(ref.substr(1)));
    } catch (const Json::exception&) {
      return InvalidArgument("%s/$ref: there is no %s", pointer, ref);
    }
    return place;
  }

  absl::StatusOr<RuleId> RuleOfRef(const std::string& ref, const std::string& pointer) {
    const auto it = rules_.find(ref);
    if (it != rules_.end()) return it->second;
    ASSIGN_OR_RETURN(const Json* schema, Find(ref, pointer));
    const RuleId rule = grammar_.AddRule("schema " + ref);
    rules_.emplace(ref, rule);
    left_.push_back({rule, schema, ref});
    return rule;
  }

  absl::StatusOr<ExprId> Value(const Json& schema, const std::string& pointer, int depth) {
    if (depth > kMaxDepth)
      return InvalidArgument("%s: nested deeper than %d, or an allOf that contains itself", pointer, kMaxDepth);
    if (++subschemas_ > kMaxSubschemas) return InvalidArgument("%s: more than %d subschemas", pointer, kMaxSubschemas);
    RETURN_IF_ERROR(CheckKeywords(schema, pointer));
    if (schema.is_boolean()) return schema.get<bool>() ? terms_.AnyValue() : grammar_.Alternate({});
    int restrictions = 0;
    for (const auto& [keyword, value] : schema.items()) restrictions += Restricts(keyword);
    if (schema.contains("allOf") || (schema.contains("$ref") && restrictions > 1)) {
      ASSIGN_OR_RETURN(const Json merged, Flatten(schema, pointer, depth));
      return Value(merged, pointer, depth + 1);
    }
    if (schema.contains("$ref")) return Reference(schema, pointer);
    for (const char* keyword : {"anyOf", "oneOf"}) {
      if (schema.contains(keyword)) return AnyOf(schema, keyword, pointer, depth);
    }
    if (schema.contains("const") || schema.contains("enum")) return Enumeration(schema, pointer);
    return ByType(schema, pointer, depth);
  }

  absl::StatusOr<ExprId> Reference(const Json& schema, const std::string& pointer) {
    if (!schema["$ref"].is_string()) return InvalidArgument("%s/$ref is %s, want a string", pointer, schema["$ref"].type_name());
    ASSIGN_OR_RETURN(const RuleId rule, RuleOfRef(schema["$ref"].get<std::string>(), pointer));
    return grammar_.Call(rule);
  }

  // The schema with allOf, and $ref beside other keywords, merged into it. An allOf of one part and nothing else is that part.
  absl::StatusOr<Json> Flatten(const Json& schema, const std::string& pointer, int depth) {
    if (depth > kMaxDepth)
      return InvalidArgument("%s: nested deeper than %d, or an allOf that contains itself", pointer, kMaxDepth);
    if (++subschemas_ > kMaxSubschemas) return InvalidArgument("%s: more than %d subschemas", pointer, kMaxSubschemas);
    merged_values_ += NumValues(schema);
    if (merged_values_ > kMaxMergedValues) return InvalidArgument("%s: what allOf and $ref merge is too large", pointer);
    RETURN_IF_ERROR(CheckKeywords(schema, pointer));
    if (schema.is_boolean()) return schema.get<bool>() ? Json::object() : Json{{"enum", Json::array()}};
    Json rest = Json::object();
    bool restricts = false;
    for (const auto& [keyword, value] : schema.items()) {
      if (keyword == "allOf" || keyword == "$ref") continue;
      restricts |= Restricts(keyword);
      rest[keyword] = value;
    }
    std::vector<Json> parts;
    if (schema.contains("$ref")) {
      if (!schema["$ref"].is_string())
        return InvalidArgument("%s/$ref is %s, want a string", pointer, schema["$ref"].type_name());
      ASSIGN_OR_RETURN(const Json* target, Find(schema["$ref"].get<std::string>(), pointer));
      parts.push_back(*target);
    }
    if (schema.contains("allOf")) {
      const Json& all = schema["allOf"];
      if (!all.is_array() || all.empty()) return InvalidArgument("%s/allOf: want a list of at least one schema", pointer);
      if (all.size() == 1 && parts.empty() && !restricts) return all[0];
      parts.insert(parts.end(), all.begin(), all.end());
    }
    for (const Json& part : parts) {
      ASSIGN_OR_RETURN(Json flat, Flatten(part, pointer, depth + 1));
      if (flat.is_object() && (flat.contains("allOf") || flat.contains("$ref"))) {
        ASSIGN_OR_RETURN(flat, Flatten(Json{{"allOf", Json::array({flat, true})}}, pointer, depth + 1));
      }
      ASSIGN_OR_RETURN(rest, MergeSchemas(rest, flat, pointer));
    }
    return rest;
  }

  // Keywords beside anyOf hold for each of its schemas.
  absl::StatusOr<ExprId> AnyOf(const Json& schema, const char* keyword, const std::string& pointer, int depth) {
    const Json& choices = schema[keyword];
    if (!choices.is_array() || choices.empty())
      return InvalidArgument("%s/%s: want a list of at least one schema", pointer, keyword);
    Json beside = Json::object();
    for (const auto& [name, value] : schema.items()) {
      if (name != keyword && Restricts(name)) beside[name] = value;
    }
    std::vector<ExprId> ways;
    for (size_t i = 0; i < choices.size(); ++i) {
      const std::string place = absl::StrCat(pointer, "/", keyword, "/", i);
      const Json both = Json{{"allOf", Json::array({choices[i], beside})}};
      ASSIGN_OR_RETURN(const ExprId way, Value(beside.empty() ? choices[i] : both, place, depth + 1));
      ways.push_back(way);
    }
    return grammar_.Alternate(std::move(ways));
  }

  absl::StatusOr<ExprId> Enumeration(const Json& schema, const std::string& pointer) {
    for (const auto& [keyword, value] : schema.items()) {
      if (!Restricts(keyword) || keyword == "type" || keyword == "enum" || keyword == "const" || keyword == "nullable") continue;
      return InvalidArgument("%s/%s: %s beside enum or const is not supported", pointer, keyword, keyword);
    }
    if (schema.contains("enum") && !schema["enum"].is_array()) return InvalidArgument("%s/enum: want a list of values", pointer);
    Json values = schema.contains("enum") ? schema["enum"] : Json::array({schema["const"]});
    if (schema.contains("enum") && schema.contains("const")) {
      const bool has = std::find(values.begin(), values.end(), schema["const"]) != values.end();
      values = has ? Json::array({schema["const"]}) : Json::array();
    }
    ASSIGN_OR_RETURN(const std::set<std::string> types, Types(schema, pointer));
    std::vector<ExprId> ways;
    for (const Json& value : values) {
      if (HasType(value, types)) ways.push_back(grammar_.Literal(Dump(value)));
    }
    return grammar_.Alternate(std::move(ways));
  }

  // The types that the schema names; without, those that its keywords are about; without any, all.
  absl::StatusOr<std::set<std::string>> Types(const Json& schema, const std::string& pointer) {
    std::set<std::string> types;
    if (schema.contains("type")) {
      const Json list = schema["type"].is_array() ? schema["type"] : Json::array({schema["type"]});
      for (const Json& type : list) {
        if (!type.is_string() || !kTypes.contains(type.get<std::string>())) {
          return InvalidArgument("%s/type: %s is no type; want null, boolean, object, array, number, string or integer", pointer,
                                 Dump(type));
        }
        types.insert(type.get<std::string>());
      }
    } else {
      static const std::map<std::string, std::string> kTypeOf = {{"properties", "object"},
                                                                 {"required", "object"},
                                                                 {"additionalProperties", "object"},
                                                                 {"items", "array"},
                                                                 {"prefixItems", "array"},
                                                                 {"minItems", "array"},
                                                                 {"maxItems", "array"},
                                                                 {"uniqueItems", "array"},
                                                                 {"minLength", "string"},
                                                                 {"maxLength", "string"},
                                                                 {"pattern", "string"},
                                                                 {"format", "string"},
                                                                 {"minimum", "number"},
                                                                 {"maximum", "number"},
                                                                 {"exclusiveMinimum", "number"},
                                                                 {"exclusiveMaximum", "number"}};
      for (const auto& [keyword, type] : kTypeOf) {
        if (schema.contains(keyword)) types.insert(type);
      }
      if (types.empty()) types = kTypes;
    }
    if (schema.contains("nullable")) {
      if (!schema["nullable"].is_boolean()) return InvalidArgument("%s/nullable: want true or false", pointer);
      if (schema["nullable"].get<bool>()) types.insert("null");
    }
    return types;
  }

  absl::StatusOr<ExprId> ByType(const Json& schema, const std::string& pointer, int depth) {
    ASSIGN_OR_RETURN(const std::set<std::string> types, Types(schema, pointer));
    std::vector<ExprId> ways;
    const bool free = types == kTypes;
    if (free) return terms_.AnyValue();
    if (types.contains("object")) {
      ASSIGN_OR_RETURN(const ExprId object, Object(schema, pointer, depth));
      ways.push_back(object);
    }
    if (types.contains("array")) {
      ASSIGN_OR_RETURN(const ExprId array, Array(schema, pointer, depth));
      ways.push_back(array);
    }
    if (types.contains("string")) {
      ASSIGN_OR_RETURN(const ExprId string, String(schema, pointer));
      ways.push_back(string);
    }
    if (types.contains("number") || types.contains("integer")) {
      ASSIGN_OR_RETURN(const ExprId number, Number(schema, pointer, /*integers=*/!types.contains("number")));
      ways.push_back(number);
    }
    if (types.contains("boolean")) ways.push_back(grammar_.Alternate({grammar_.Literal("true"), grammar_.Literal("false")}));
    if (types.contains("null")) ways.push_back(grammar_.Literal("null"));
    return grammar_.Alternate(std::move(ways));
  }

  // A count that a keyword gives.
  absl::StatusOr<std::optional<int64_t>> Count(const Json& schema, const char* keyword, const std::string& pointer) const {
    if (!schema.contains(keyword)) return std::optional<int64_t>();
    const Json& value = schema[keyword];
    const double number = value.is_number() ? value.get<double>() : -1;
    if (!(number >= 0 && number <= 1e15) || number != static_cast<double>(static_cast<int64_t>(number))) {
      return InvalidArgument("%s/%s is %s, want an integer of at least 0", pointer, keyword, Dump(value));
    }
    return std::optional<int64_t>(static_cast<int64_t>(number));
  }

  absl::StatusOr<ExprId> String(const Json& schema, const std::string& pointer) {
    StringLimits limits;
    ASSIGN_OR_RETURN(const std::optional<int64_t> min, Count(schema, "minLength", pointer));
    limits.min_length = min.value_or(0);
    ASSIGN_OR_RETURN(limits.max_length, Count(schema, "maxLength", pointer));
    for (const auto& [keyword, target] : {std::pair("pattern", &limits.pattern), std::pair("format", &limits.format)}) {
      if (!schema.contains(keyword)) continue;
      if (!schema[keyword].is_string()) return InvalidArgument("%s/%s: want a string", pointer, keyword);
      *target = schema[keyword].get<std::string>();
    }
    absl::StatusOr<ExprId> string = terms_.String(limits);
    if (!string.ok()) return Annotate(string.status(), pointer);
    return *string;
  }

  absl::Status TakeBound(const Json& schema, const char* keyword, const std::string& pointer, std::optional<Decimal>* bound,
                         bool* exclusive, bool is_exclusive, bool is_max) const {
    if (!schema.contains(keyword)) return absl::OkStatus();
    if (!schema[keyword].is_number()) return InvalidArgument("%s/%s: want a number", pointer, keyword);
    absl::StatusOr<Decimal> decimal = Decimal::Parse(Dump(schema[keyword]));
    if (!decimal.ok()) return Annotate(decimal.status(), absl::StrCat(pointer, "/", keyword));
    const char* other = is_max ? "maximum" : "minimum";
    // Beside minimum, exclusiveMinimum only counts when it is the tighter one.
    if (is_exclusive && schema.contains(other) && schema[other].is_number()) {
      if (is_max ? schema[keyword] > schema[other] : schema[keyword] < schema[other]) return absl::OkStatus();
    }
    *bound = *std::move(decimal);
    *exclusive = is_exclusive;
    return absl::OkStatus();
  }

  absl::StatusOr<ExprId> Number(const Json& schema, const std::string& pointer, bool integers) {
    NumberBounds bounds;
    RETURN_IF_ERROR(TakeBound(schema, "minimum", pointer, &bounds.min, &bounds.min_exclusive, false, false));
    RETURN_IF_ERROR(TakeBound(schema, "exclusiveMinimum", pointer, &bounds.min, &bounds.min_exclusive, true, false));
    RETURN_IF_ERROR(TakeBound(schema, "maximum", pointer, &bounds.max, &bounds.max_exclusive, false, true));
    RETURN_IF_ERROR(TakeBound(schema, "exclusiveMaximum", pointer, &bounds.max, &bounds.max_exclusive, true, true));
    if (!bounds.min && !bounds.max) return integers ? terms_.Integer() : terms_.Number();
    return NumbersWithin(&grammar_, bounds, integers);
  }

  // In a rule of its own, whose states serve wherever it is called from.
  ExprId AsRule(std::string name, ExprId expr) {
    const RuleId rule = grammar_.AddRule(std::move(name));
    grammar_.SetRule(rule, expr);
    return grammar_.Call(rule);
  }

  absl::StatusOr<ExprId> Array(const Json& schema, const std::string& pointer, int depth) {
    if (schema.contains("uniqueItems") && schema["uniqueItems"] != false) {
      return InvalidArgument("%s/uniqueItems: the keyword uniqueItems is not supported", pointer);
    }
    ASSIGN_OR_RETURN(const std::optional<int64_t> least, Count(schema, "minItems", pointer));
    ASSIGN_OR_RETURN(const std::optional<int64_t> most, Count(schema, "maxItems", pointer));
    const int64_t min = least.value_or(0);
    if (min > kMaxItems) return InvalidArgument("%s/minItems is %d, want at most %d", pointer, min, kMaxItems);
    if (most && *most < min) return grammar_.Alternate({});
    std::vector<ExprId> first;
    if (schema.contains("prefixItems")) {
      if (!schema["prefixItems"].is_array()) return InvalidArgument("%s/prefixItems: want a list of schemas", pointer);
      for (const Json& item : schema["prefixItems"]) {
        ASSIGN_OR_RETURN(const ExprId expr, Value(item, absl::StrCat(pointer, "/prefixItems/", first.size()), depth + 1));
        first.push_back(expr);
      }
    }
    if (schema.contains("items") && schema["items"].is_array()) {
      return InvalidArgument("%s/items: a list of schemas is not supported; want prefixItems", pointer);
    }
    const auto num_first = static_cast<int64_t>(first.size());
    // Items behind those of prefixItems come only when the schema speaks of them.
    const bool more = first.empty() || schema.contains("items") || min > num_first;
    ExprId item = grammar_.Alternate({});
    if (more) {
      const Json any = true;
      ASSIGN_OR_RETURN(item, Value(schema.contains("items") ? schema["items"] : any, pointer + "/items", depth + 1));
    }
    const int64_t max = most.value_or(more ? std::numeric_limits<int64_t>::max() : num_first);
    return AsRule("array " + pointer, Brackets("[", List(first, item, min, max), "]"));
  }

  // Items with commas between them: those of `first`, then `item` again and again.
  ExprId List(const std::vector<ExprId>& first, ExprId item, int64_t min, int64_t max) {
    const auto behind_comma = [&](ExprId expr) { return grammar_.Concat({terms_.Comma(), expr}); };
    const auto num_first = static_cast<int64_t>(first.size());
    const auto repeat = [&](int64_t done) {
      const auto low = static_cast<int32_t>(std::max<int64_t>(0, min - done));
      const int32_t high = max - done > kMaxItems ? kUnbounded : static_cast<int32_t>(max - done);
      return grammar_.Repeat(behind_comma(item), low, high);
    };
    if (max == 0) return grammar_.Empty();
    ExprId rest = max > num_first ? repeat(std::max<int64_t>(num_first, 1)) : grammar_.Empty();
    for (int64_t i = std::min(num_first, max); i-- > 1;) {
      rest = grammar_.Concat({behind_comma(first[i]), rest});
      if (i >= min) rest = grammar_.Optional(rest);
    }
    const ExprId list = grammar_.Concat({first.empty() ? item : first[0], rest});
    return min == 0 ? grammar_.Optional(list) : list;
  }

  ExprId Brackets(const char* open, ExprId body, const char* close) {
    return grammar_.Concat({grammar_.Literal(open), terms_.Space(), body, terms_.Space(), grammar_.Literal(close)});
  }

  struct Property {
    ExprId pair;
    bool required;
  };

  absl::StatusOr<std::vector<Property>> Properties(const Json& schema, const std::string& pointer, int depth,
                                                   std::vector<std::string>* names) {
    std::vector<Property> properties;
    std::set<std::string> required;
    const Json list = schema.value("required", Json::array());
    if (!list.is_array()) return InvalidArgument("%s/required: want a list of names", pointer);
    for (const Json& name : list) {
      if (!name.is_string()) return InvalidArgument("%s/required: %s is no name", pointer, Dump(name));
      required.insert(name.get<std::string>());
    }
    Json declared = schema.value("properties", Json::object());
    if (!declared.is_object()) return InvalidArgument("%s/properties: want an object of schemas", pointer);
    for (const Json& name : list) {  // required but not declared: what additionalProperties says
      if (!declared.contains(name.get<std::string>())) {
        declared[name.get<std::string>()] = schema.value("additionalProperties", Json(true));
      }
    }
    for (const auto& [name, value] : declared.items()) {
      ASSIGN_OR_RETURN(const ExprId expr, Value(value, absl::StrCat(pointer, "/properties/", name), depth + 1));
      properties.push_back({Pair(grammar_.Literal(Dump(name)), expr), required.contains(name)});
      names->push_back(name);
    }
    return properties;
  }

  ExprId Pair(ExprId key, ExprId value) {
    return grammar_.Concat({key, terms_.Space(), grammar_.Literal(":"), terms_.Space(), value});
  }

  absl::StatusOr<ExprId> Object(const Json& schema, const std::string& pointer, int depth) {
    std::vector<std::string> names;
    ASSIGN_OR_RETURN(const std::vector<Property> properties, Properties(schema, pointer, depth, &names));
    const Json additional = schema.value("additionalProperties", Json(properties.empty()));
    if (properties.empty() && additional == true) return terms_.AnyObject();
    ExprId further = grammar_.Empty(), first_further = grammar_.Alternate({});
    if (additional != false) {
      ASSIGN_OR_RETURN(const ExprId value, Value(additional, pointer + "/additionalProperties", depth + 1));
      const ExprId pair = AsRule(pointer + "/additionalProperties", Pair(terms_.KeyExcept(names), value));
      further = grammar_.Repeat(grammar_.Concat({terms_.Comma(), pair}), 0, kUnbounded);
      first_further = grammar_.Concat({pair, further});
    }
    return AsRule("object " + pointer, Brackets("{", Pairs(properties, further, first_further, pointer), "}"));
  }

  // Properties in order, some of them optional, then `further` ones. What follows a property that may be the first has a
  // rule of its own, so that it is written once however many may be the first.
  ExprId Pairs(const std::vector<Property>& properties, ExprId further, ExprId first_further, const std::string& pointer) {
    size_t last_first = 0;  // the last property that can be the first
    while (last_first < properties.size() && !properties[last_first].required) ++last_first;
    std::vector<ExprId> ways;
    if (last_first == properties.size()) ways = {grammar_.Empty(), first_further};
    ExprId rest = further;
    for (size_t i = properties.size(); i-- > 0;) {
      if (i <= last_first) ways.push_back(grammar_.Concat({properties[i].pair, rest}));
      const ExprId behind_comma = grammar_.Concat({terms_.Comma(), properties[i].pair});
      rest = grammar_.Concat({properties[i].required ? behind_comma : grammar_.Optional(behind_comma), rest});
      if (i <= last_first && i > 0) rest = AsRule(absl::StrCat("properties of ", pointer, " from number ", i), rest);
    }
    return grammar_.Alternate(std::move(ways));
  }

  const Json& root_;
  Grammar grammar_;
  JsonTerms terms_;
  std::map<std::string, RuleId> rules_;  // by $ref
  std::deque<Pending> left_;
  int subschemas_ = 0;
  int64_t merged_values_ = 0;
};

}  // namespace

absl::StatusOr<Grammar> ParseJsonSchema(std::string_view text) {
  if (text.size() > kMaxSchemaBytes) return InvalidArgument("it has %d bytes, want at most %d", text.size(), kMaxSchemaBytes);
  bool too_deep = false;
  const auto watch = [&](int depth, Json::parse_event_t, Json&) {
    too_deep |= depth > 4 * kMaxDepth;
    return !too_deep;
  };
  const Json schema = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (too_deep) return InvalidArgument("it is nested deeper than %d", 4 * kMaxDepth);
  if (schema.is_discarded()) return InvalidArgument("it is not JSON");
  return SchemaCompiler(&schema).Compile();
}

Grammar JsonObjectGrammar() {
  Grammar grammar;
  const RuleId root = grammar.AddRule("a JSON object");
  grammar.SetRule(root, JsonTerms(&grammar).AnyObject());
  grammar.SetRoot(root);
  return grammar;
}

}  // namespace ferry::constraint
