#include "tests/cluster/bad_cable.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <random>
#include <utility>
#include <vector>

#include "common/deadline.h"

namespace ferry {
namespace {

constexpr size_t kMaxFrameBytes = 2048;      // of an MTU of 1,500 bytes
constexpr size_t kMaxFramesOnTheWay = 8192;  // a switch has no more room either: further ones are lost
constexpr uint64_t kWake = 1;

absl::StatusOr<UniqueFd> OpenTap(const std::string& name) {
  UniqueFd tap(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!tap.valid()) return FailedPrecondition("/dev/net/tun cannot be opened: %s", std::strerror(errno));
  ifreq request = {};
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  if (::ioctl(tap.get(), TUNSETIFF, &request) == 0) return tap;
  return FailedPrecondition("a TAP device cannot be made: %s", std::strerror(errno));
}

// A device is made in the namespace of the thread that makes it.
absl::Status EnterNetwork(pid_t process) {
  const UniqueFd network(::open(absl::StrFormat("/proc/%d/ns/net", process).c_str(), O_RDONLY | O_CLOEXEC));
  if (network.valid() && ::setns(network.get(), CLONE_NEWNET) == 0) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, "the network of another process cannot be entered");
}

}  // namespace

// Frames on their way to one end.
class BadCable::Way {
 public:
  Way(BadCable* cable, int from, int to, bool may_be_deaf, uint64_t seed)
      : cable_(*cable), from_(from), to_(to), may_be_deaf_(may_be_deaf), random_(seed) {}

  // Takes all that has come.
  void Take(const Trouble& trouble) {
    std::array<char, kMaxFrameBytes> frame;
    for (ssize_t bytes; (bytes = ::read(from_, frame.data(), frame.size())) > 0;) {
      const bool lost = uniform_(random_) < trouble.loss || Cut(trouble) || frames_.size() == kMaxFramesOnTheWay;
      if (lost) {
        ++cable_.lost_;
      } else {
        frames_.push_back({.due = Deadline::In(trouble.delay), .bytes = {frame.begin(), frame.begin() + bytes}});
      }
    }
  }
  // Gives away what is due.
  void Give(const Trouble& trouble) {
    for (; !frames_.empty() && frames_.front().due.Passed(); frames_.pop_front()) {
      const std::vector<char>& bytes = frames_.front().bytes;
      const bool carried = !Cut(trouble) && ::write(to_, bytes.data(), bytes.size()) >= 0;
      ++(carried ? cable_.carried_ : cable_.lost_);
    }
  }
  Deadline next() const { return frames_.empty() ? Deadline::Never() : frames_.front().due; }

 private:
  struct Frame {
    Deadline due;
    std::vector<char> bytes;
  };

  bool Cut(const Trouble& trouble) const { return trouble.cut || (trouble.deaf && may_be_deaf_); }

  BadCable& cable_;
  const int from_, to_;
  const bool may_be_deaf_;
  std::mt19937_64 random_;
  std::uniform_real_distribution<double> uniform_;
  std::deque<Frame> frames_;
};

absl::StatusOr<std::unique_ptr<BadCable>> BadCable::Lay(pid_t network, const std::string& one_end, const std::string& other_end,
                                                        uint64_t seed) {
  absl::StatusOr<UniqueFd> one, other;
  absl::Status entered;
  std::thread([&] {
    entered = EnterNetwork(network);
    if (!entered.ok()) return;
    one = OpenTap(one_end);
    other = OpenTap(other_end);
  }).join();
  RETURN_IF_ERROR(entered);
  RETURN_IF_ERROR(one.status());
  RETURN_IF_ERROR(other.status());
  UniqueFd stop(::eventfd(0, EFD_CLOEXEC));
  if (!stop.valid()) return absl::ErrnoToStatus(errno, "eventfd");
  std::unique_ptr<BadCable> cable(new BadCable(*std::move(one), *std::move(other), std::move(stop)));
  cable->thread_ = std::thread([raw = cable.get(), seed] { raw->Carry(seed); });
  return cable;
}

BadCable::~BadCable() {
  [[maybe_unused]] const ssize_t written = ::write(stop_.get(), &kWake, sizeof(kWake));
  thread_.join();
}

void BadCable::Set(const Trouble& trouble) {
  const std::lock_guard lock(mutex_);
  trouble_ = trouble;
}

BadCable::Trouble BadCable::trouble() const {
  const std::lock_guard lock(mutex_);
  return trouble_;
}

void BadCable::Carry(uint64_t seed) {
  Way there(this, ends_[0].get(), ends_[1].get(), /*may_be_deaf=*/true, seed);
  Way back(this, ends_[1].get(), ends_[0].get(), /*may_be_deaf=*/false, seed + 1);
  std::array<pollfd, 3> waiting = {{{.fd = ends_[0].get(), .events = POLLIN, .revents = 0},
                                    {.fd = ends_[1].get(), .events = POLLIN, .revents = 0},
                                    {.fd = stop_.get(), .events = POLLIN, .revents = 0}}};
  while (waiting[2].revents == 0) {
    const absl::Duration left = std::min(there.next(), back.next()).Remaining();
    const timespec timeout = absl::ToTimespec(std::clamp(left, absl::ZeroDuration(), absl::Seconds(3600)));
    ::ppoll(waiting.data(), waiting.size(), &timeout, nullptr);
    for (pollfd& end : waiting) {
      if (end.revents & POLLERR) end.fd = -1;  // its namespace has ended, and with it the device
    }
    const Trouble now = trouble();
    for (Way* const way : {&there, &back}) way->Take(now);
    for (Way* const way : {&there, &back}) way->Give(now);
  }
}

}  // namespace ferry
