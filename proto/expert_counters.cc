#include "proto/expert_counters.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

namespace ferry {

// By reflection, so that a field that is added to the message is in every sum.
void AddCounters(const v1::ExpertCounters& part, v1::ExpertCounters* total) {
  using google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& reflection = *part.GetReflection();
  for (int i = 0; i < part.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* const field = part.GetDescriptor()->field(i);
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      reflection.SetDouble(total, field, reflection.GetDouble(*total, field) + reflection.GetDouble(part, field));
    } else {
      reflection.SetUInt64(total, field, reflection.GetUInt64(*total, field) + reflection.GetUInt64(part, field));
    }
  }
}

}  // namespace ferry
