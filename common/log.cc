#include "common/log.h"

#include <memory>
#include <utility>

#include "spdlog/sinks/stdout_color_sinks.h"

namespace ferry {

void InitLog(const std::string& process, const std::string& level) {
  auto logger = std::make_shared<spdlog::logger>(process, std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern("%H:%M:%S.%e %^%l%$ %n: %v");
  // A process that is killed should have said what it knew.
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
  // from_str() answers "off" to what it does not know.
  const spdlog::level::level_enum parsed = spdlog::level::from_str(level);
  const bool known = parsed != spdlog::level::off || level == "off";
  spdlog::set_level(known ? parsed : spdlog::level::info);
  if (!known) spdlog::warn("log level '{}' is unknown, want trace, debug, info, warn, error or off: using info", level);
}

}  // namespace ferry
