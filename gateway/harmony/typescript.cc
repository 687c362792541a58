#include "gateway/harmony/typescript.h"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {
namespace {

using jinja::MarkedString;

constexpr int kMaxDepth = 64;

// A member of `schema`, null without it.
const Json* Find(const Json& schema, const char* name) {
  if (!schema.is_object()) return nullptr;
  const auto found = schema.find(name);
  return found == schema.end() ? nullptr : &*found;
}

std::optional<std::string> FindString(const Json& schema, const char* name) {
  const Json* found = Find(schema, name);
  if (found == nullptr || !found->is_string()) return std::nullopt;
  return found->get<std::string>();
}

const Json* FindArray(const Json& schema, const char* name) {
  const Json* found = Find(schema, name);
  return found != nullptr && found->is_array() ? found : nullptr;
}

bool IsEnum(const Json& schema) {
  const Json* values = FindArray(schema, "enum");
  return values != nullptr && !values->empty();
}

class TypeWriter {
 public:
  MarkedString Take() { return std::move(out_); }

  void WriteType(const Json& schema, const std::string& indent) {
    if (depth_ >= kMaxDepth) return Put("any");
    ++depth_;
    if (const Json* variants = FindArray(schema, "oneOf")) {
      WriteOneOf(*variants, indent);
    } else if (const Json* types = FindArray(schema, "type"); types != nullptr && WriteTypes(*types)) {
    } else {
      WriteNamedType(schema, FindString(schema, "type").value_or(""), indent);
    }
    --depth_;
  }

 private:
  void Put(std::string_view text) { out_.Append(text, false); }
  void PutUsers(std::string_view text) { out_.Append(text, true); }

  void PutQuoted(std::string_view text) {
    Put("\"");
    PutUsers(text);
    Put("\"");
  }

  void PutComment(const std::string& indent, std::string_view text) {
    Put(indent + "// ");
    PutUsers(text);
    Put("\n");
  }

  static std::string_view TypeName(std::string_view type) { return type == "integer" ? "number" : type; }

  // Whether there was a type in the list.
  bool WriteTypes(const Json& types) {
    bool first = true;
    for (const Json& type : types) {
      if (!type.is_string()) continue;
      if (!first) Put(" | ");
      PutUsers(TypeName(type.get_ref<const std::string&>()));
      first = false;
    }
    return !first;
  }

  void WriteNamedType(const Json& schema, const std::string& type, const std::string& indent) {
    if (type == "object") {
      WriteObject(schema, indent);
    } else if (type == "string") {
      WriteString(schema);
    } else if (type == "number" || type == "integer" || type == "boolean") {
      Put(TypeName(type));
    } else if (type == "array") {
      const Json* items = Find(schema, "items");
      if (items == nullptr) return Put("Array<any>");
      WriteType(*items, indent);
      Put("[]");
    } else {
      Put("any");
    }
  }

  void WriteString(const Json& schema) {
    bool any = false;
    if (const Json* values = FindArray(schema, "enum")) {
      for (const Json& value : *values) {
        if (!value.is_string()) continue;
        if (any) Put(" | ");
        PutQuoted(value.get_ref<const std::string&>());
        any = true;
      }
    }
    if (!any) Put("string");
  }

  // The type, and "| null" where the schema says so in OpenAPI's way.
  void WriteNullable(const Json& schema, const std::string& indent) {
    const size_t begin = out_.size();
    WriteType(schema, indent);
    const Json* nullable = Find(schema, "nullable");
    if (nullable == nullptr || !nullable->is_boolean() || !nullable->get<bool>()) return;
    if (out_.text().substr(begin).find("null") == std::string_view::npos) Put(" | null");
  }

  // "default: VALUE"; a string is quoted unless it is one of an enum. `bare_enums`: or as JSON has it.
  MarkedString DefaultText(const Json& schema, const Json& value, bool bare_enums) const {
    MarkedString text("default: ");
    const bool is_string = value.is_string();
    if (is_string && IsEnum(schema) && bare_enums) {
      text.Append(value.get_ref<const std::string&>(), true);
    } else if (is_string && !IsEnum(schema)) {
      text.Append("\"", false);
      text.Append(value.get_ref<const std::string&>(), true);
      text.Append("\"", false);
    } else {
      text.Append(value.dump(-1, ' ', false, Json::error_handler_t::replace), true);
    }
    return text;
  }

  void PutTrailing(const std::vector<MarkedString>& comments) {
    for (size_t i = 0; i < comments.size(); ++i) {
      Put(i == 0 ? " // " : " ");
      out_.Append(comments[i]);
    }
  }

  void WriteOneOf(const Json& variants, const std::string& indent) {
    for (const Json& variant : variants) {
      Put("\n" + indent + " | ");
      WriteNullable(variant, indent + "   ");
      std::vector<MarkedString> comments;
      if (const auto description = FindString(variant, "description")) comments.emplace_back(*description, true);
      if (const Json* value = Find(variant, "default")) comments.push_back(DefaultText(variant, *value, /*bare_enums=*/false));
      PutTrailing(comments);
    }
  }

  void WriteObject(const Json& schema, const std::string& indent) {
    if (const auto description = FindString(schema, "description")) PutComment(indent, *description);
    Put("{\n");
    const Json* properties = Find(schema, "properties");
    const Json* required = FindArray(schema, "required");
    if (properties != nullptr && properties->is_object()) {
      for (const auto& [name, property] : properties->items()) {
        const bool is_required =
            required != nullptr && std::find(required->begin(), required->end(), Json(name)) != required->end();
        WriteProperty(name, is_required, property, indent);
      }
    }
    Put(indent + "}");
  }

  void WriteProperty(const std::string& name, bool is_required, const Json& property, const std::string& indent) {
    if (const auto title = FindString(property, "title")) {
      PutComment(indent, *title);
      Put(indent + "//\n");
    }
    const auto description = FindString(property, "description");
    if (description && Find(property, "oneOf") == nullptr) PutComment(indent, *description);
    if (const Json* examples = FindArray(property, "examples"); examples != nullptr && !examples->empty()) {
      Put(indent + "// Examples:\n");
      for (const Json& example : *examples) {
        if (!example.is_string()) continue;
        Put(indent + "// - ");
        PutQuoted(example.get_ref<const std::string&>());
        Put("\n");
      }
    }
    if (const Json* variants = FindArray(property, "oneOf")) {
      WriteOneOfProperty(name, is_required, property, *variants, indent);
      return;
    }
    PutName(name, is_required, indent);
    Put(" ");
    WriteNullable(property, indent + "    ");
    Put(",");
    const Json* value = Find(property, "default");
    if (value != nullptr && Find(property, "oneOf") == nullptr) PutTrailing({DefaultText(property, *value, /*bare_enums=*/true)});
    Put("\n");
  }

  void PutName(const std::string& name, bool is_required, const std::string& indent) {
    Put(indent);
    PutUsers(name);
    Put(is_required ? ":" : "?:");
  }

  // The description is written once, above the name or behind the first variant.
  void WriteOneOfProperty(const std::string& name, bool is_required, const Json& property, const Json& variants,
                          const std::string& indent) {
    const auto description = FindString(property, "description");
    const bool first_has_it = !variants.empty() && FindString(variants[0], "description") == description;
    const bool above = description && !first_has_it;
    if (above) PutComment(indent, *description);
    if (const Json* value = Find(property, "default")) {
      Put(indent + "// ");
      out_.Append(DefaultText(property, *value, /*bare_enums=*/true));
      Put("\n");
    }
    PutName(name, is_required, indent);
    Put("\n");
    for (size_t i = 0; i < variants.size(); ++i) {
      const Json& variant = variants[i];
      Put(indent + " | ");
      WriteNullable(variant, indent + "   ");
      std::vector<MarkedString> comments;
      const auto own = FindString(variant, "description");
      if (own && own != description && !(i == 0 && above)) comments.emplace_back(*own, true);
      if (const Json* value = Find(variant, "default")) comments.push_back(DefaultText(variant, *value, /*bare_enums=*/true));
      PutTrailing(comments);
      Put("\n");
    }
    Put(indent + ",\n");
  }

  MarkedString out_;
  int depth_ = 0;
};

}  // namespace

jinja::MarkedString TypeScriptType(const Json& schema) {
  TypeWriter writer;
  writer.WriteType(schema, "");
  return writer.Take();
}

}  // namespace ferry
