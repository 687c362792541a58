#include "gateway/access.h"
#include "gateway/routes/routes.h"

namespace ferry {

RouteCall CallOf(const RouteParts& parts, const HttpRequest& request, const std::shared_ptr<Exchange>& exchange) {
  return {.parts = parts,
          .engine = parts.coordinator->As(std::string(KeyOf(request))),
          .exchange = exchange,
          .request_id = request.id};
}

}  // namespace ferry
