#include "warp.h"

#include <cstring>
#include <string>
#include <string_view>

#include "block.h"
#include "fault.h"

namespace emulator {

namespace {

std::string lanes_text(uint32_t lanes) {
  std::string out;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    int end = lane;
    while (end + 1 < kLanes && lanes >> (end + 1) & 1) ++end;
    out += (out.empty() ? "" : ", ") + std::to_string(lane) + (end > lane ? "-" + std::to_string(end) : "");
    lane = end;
  }
  return out;
}

std::string mask_text(uint32_t mask) {
  char text[16];
  snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

}  // namespace

void Warp::start(int number, int lanes) {
  number_ = number;
  whole_ = live_ = lanes == kLanes ? kAllLanes : (1u << lanes) - 1;
  meetings_.clear();
  syncs_ = all_ordered_ = 0;
  if (some_ordered_) ordered_ = {};
  some_ordered_ = false;
}

Thread& Warp::thread(int lane) const {
  return block.thread(number_ * kLanes + lane);
}

void Warp::ended(int lane) {
  live_ &= ~(1u << lane);
  for (const Meeting& meeting : meetings_) {
    if (!meeting.has(lane)) continue;
    fault("ends, but lanes " + lanes_text(meeting.arrived) + " of its warp wait for it in the " + meeting.what +
          " of " + text(meeting.place) + ", whose mask " + mask_text(meeting.mask) + " names lane " +
          std::to_string(lane));
  }
}

void Warp::check_mask(const char* what, uint32_t mask, int lane) const {
  if (!(mask >> lane & 1)) {
    fault(std::string(what) + " is called by lane " + std::to_string(lane) + ", which its mask " + mask_text(mask) +
          " does not name");
  }
  if (mask & ~live_) {
    fault(std::string(what) + "'s mask " + mask_text(mask) + " names lanes " + lanes_text(mask & ~live_) +
          " of the warp, which have ended or do not exist");
  }
}

void Warp::meet(const char* what, uint32_t mask, void* operand, Combine combine, Place place) {
  Thread& thread = block.current();
  const int lane = thread.lane();
  check_mask(what, mask, lane);
  size_t at = 0;
  while (at < meetings_.size() && !(meetings_[at].mask & mask)) ++at;
  if (at == meetings_.size()) {
    meetings_.push_back({what, mask, 0, place, {}});
  }
  Meeting& meeting = meetings_[at];
  if (meeting.mask != mask || std::string_view(meeting.what) != what || meeting.place.line != place.line ||
      std::string_view(meeting.place.file) != place.file) {
    fault(std::string("lane ") + std::to_string(lane) + " is at the " + what + " of " + text(place) + " with mask " +
          mask_text(mask) + " while lanes " + lanes_text(meeting.arrived) + " wait at the " + meeting.what + " of " +
          text(meeting.place) + " with mask " + mask_text(meeting.mask));
  }
  meeting.arrived |= 1u << lane;
  meeting.operand[lane] = operand;
  if (meeting.arrived != mask) {
    block.wait(what, place);
    return;
  }
  const Meeting complete = meeting;
  meetings_.erase(meetings_.begin() + static_cast<std::ptrdiff_t>(at));
  combine(*this, complete);
  block.set_subject(thread);
  for (int other = 0; other < kLanes; ++other) {
    if (complete.has(other) && other != lane) block.wake(this->thread(other));
  }
  // The last to come has no claim to go on first.
  block.wake(thread);
  block.wait(what, place);
}

void Warp::order(uint32_t mask) {
  ++syncs_;
  if (mask == whole_) {
    all_ordered_ = syncs_;
    return;
  }
  some_ordered_ = true;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    for (int other = 0; other < kLanes; ++other) {
      if (mask >> other & 1) ordered_[lane][other] = syncs_;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// What lanes meet for
// ---------------------------------------------------------------------------------------------------------------------

namespace {

Warp& own_warp() {
  return block.warp(block.current().warp());
}

struct ShuffleOperand {
  Shuffle kind;
  uint64_t bits;
  int lane;  // or delta, or the bits to flip
  int width;
  uint64_t result;
};

// Which lane this one reads from: PTX ISA, shfl.sync. Out of the segment: its own value.
int source_lane(const ShuffleOperand& operand, int lane) {
  const int first = lane & ~(operand.width - 1), last = first + operand.width - 1;
  switch (operand.kind) {
    case Shuffle::kIndex:
      return first + (operand.lane & (operand.width - 1));
    case Shuffle::kUp:
      return lane - operand.lane < first ? lane : lane - operand.lane;
    case Shuffle::kDown:
      return lane + operand.lane > last ? lane : lane + operand.lane;
    case Shuffle::kXor:
      return (lane ^ operand.lane) > last ? lane : lane ^ operand.lane;
  }
  return lane;
}

void combine_shuffle(Warp& warp, const Meeting& meeting) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!meeting.has(lane)) continue;
    auto& operand = meeting.of<ShuffleOperand>(lane);
    const int source = source_lane(operand, lane);
    if (!meeting.has(source)) {
      block.set_subject(warp.thread(lane));
      fault(std::string(meeting.what) + " of " + text(meeting.place) + ": lane " + std::to_string(lane) +
            " reads from lane " + std::to_string(source) + ", which is inactive: the mask " + mask_text(meeting.mask) +
            " does not name it");
    }
    operand.result = meeting.of<ShuffleOperand>(source).bits;
  }
}

struct VoteOperand {
  Vote kind;
  bool predicate;
  unsigned result;
};

void combine_vote(Warp&, const Meeting& meeting) {
  uint32_t ballot = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (meeting.has(lane) && meeting.of<VoteOperand>(lane).predicate) ballot |= 1u << lane;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!meeting.has(lane)) continue;
    auto& operand = meeting.of<VoteOperand>(lane);
    operand.result = operand.kind == Vote::kBallot ? ballot
                     : operand.kind == Vote::kAny  ? ballot != 0
                                                   : ballot == meeting.mask;
  }
}

}  // namespace

void synchronize_warp(unsigned mask, Place place) {
  own_warp().meet(
      "__syncwarp", mask, nullptr, [](Warp& warp, const Meeting& meeting) { warp.order(meeting.mask); }, place);
}

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t bits, int lane, int width, Place place) {
  constexpr const char* kNames[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
  const char* name = kNames[static_cast<int>(kind)];
  if (width < 1 || width > kLanes || (width & (width - 1))) {
    fault(std::string(name) + " of " + text(place) + ": width must be a power of two up to 32, got " +
          std::to_string(width));
  }
  ShuffleOperand operand{kind, bits, lane, width, 0};
  own_warp().meet(name, mask, &operand, combine_shuffle, place);
  return operand.result;
}

unsigned vote(Vote kind, unsigned mask, bool predicate, Place place) {
  constexpr const char* kNames[] = {"__ballot_sync", "__any_sync", "__all_sync"};
  VoteOperand operand{kind, predicate, 0};
  own_warp().meet(kNames[static_cast<int>(kind)], mask, &operand, combine_vote, place);
  return operand.result;
}

}  // namespace emulator
