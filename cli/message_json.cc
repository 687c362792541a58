#include "cli/message_json.h"

#include <google/protobuf/descriptor.h>

#include <nlohmann/json.hpp>

namespace ferry {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using OrderedJson = nlohmann::ordered_json;

// `index`: of a repeated field, -1 for another one.
OrderedJson ValueOf(const Message& message, const FieldDescriptor* field, int index) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  const auto value = [&](auto get, auto get_one) -> OrderedJson {
    return index < 0 ? OrderedJson((reflection.*get)(message, field)) : OrderedJson((reflection.*get_one)(message, field, index));
  };
  using R = google::protobuf::Reflection;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return value(&R::GetInt32, &R::GetRepeatedInt32);
    case FieldDescriptor::CPPTYPE_INT64:
      return value(&R::GetInt64, &R::GetRepeatedInt64);
    case FieldDescriptor::CPPTYPE_UINT32:
      return value(&R::GetUInt32, &R::GetRepeatedUInt32);
    case FieldDescriptor::CPPTYPE_UINT64:
      return value(&R::GetUInt64, &R::GetRepeatedUInt64);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return value(&R::GetDouble, &R::GetRepeatedDouble);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return value(&R::GetFloat, &R::GetRepeatedFloat);
    case FieldDescriptor::CPPTYPE_BOOL:
      return value(&R::GetBool, &R::GetRepeatedBool);
    case FieldDescriptor::CPPTYPE_STRING:
      return value(&R::GetString, &R::GetRepeatedString);
    case FieldDescriptor::CPPTYPE_ENUM:
      return index < 0 ? reflection.GetEnum(message, field)->name() : reflection.GetRepeatedEnum(message, field, index)->name();
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return JsonOf(index < 0 ? reflection.GetMessage(message, field) : reflection.GetRepeatedMessage(message, field, index));
  }
  return nullptr;
}

}  // namespace

OrderedJson JsonOf(const Message& message) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  OrderedJson json = OrderedJson::object();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* const field = message.GetDescriptor()->field(i);
    if (field->is_repeated()) {
      OrderedJson& values = json[field->name()] = OrderedJson::array();
      for (int at = 0; at < reflection.FieldSize(message, field); ++at) values.push_back(ValueOf(message, field, at));
    } else if (!field->has_presence() || reflection.HasField(message, field)) {
      json[field->name()] = ValueOf(message, field, -1);
    }
  }
  return json;
}

}  // namespace ferry
