// The page: files of the program itself, which everybody may read. What the page then asks for needs a key where keys are on.

#include <string>
#include <string_view>

#include "gateway/page_files.h"
#include "gateway/routes/routes.h"

namespace ferry {
namespace {

// No inline script, no other origin, no frame around it, and no text of a model that becomes HTML.
constexpr char kPolicy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const char* ContentTypeOf(std::string_view name) {
  if (name.ends_with(".html")) return "text/html; charset=utf-8";
  if (name.ends_with(".js")) return "text/javascript; charset=utf-8";
  return name.ends_with(".css") ? "text/css; charset=utf-8" : "image/svg+xml";
}

}  // namespace

void AddPageRoutes(Router& router) {
  for (const PageFile& file : PageFiles()) {
    const std::string path = file.name == "index.html" ? "/" : "/page/" + std::string(file.name);
    router.AddOpen(path, [file](const HttpRequest&, const std::shared_ptr<Exchange>& exchange) {
      exchange->Respond({.content_type = ContentTypeOf(file.name),
                         .headers = {{"Content-Security-Policy", kPolicy},
                                     {"X-Content-Type-Options", "nosniff"},
                                     {"Referrer-Policy", "no-referrer"},
                                     {"Cache-Control", "no-cache"}},
                         .body = std::string(file.bytes)});
      return absl::OkStatus();
    });
  }
}

}  // namespace ferry
