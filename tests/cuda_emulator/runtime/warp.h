// What the lanes of a warp do together: shuffles, votes, __syncwarp, ldmatrix, mma.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "emulator/device.h"

namespace emulator {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

struct Thread;

// A meeting of the lanes in `mask`. Each brings an operand on its own stack; the last to come has `combine` read and
// write all of them, and everyone goes on.
struct Meeting {
  const char* what;
  uint32_t mask = 0;
  uint32_t arrived = 0;
  Place place;
  std::array<void*, kLanes> operand;

  template <typename Operand>
  Operand& of(int lane) const {
    return *static_cast<Operand*>(operand[lane]);
  }
  bool has(int lane) const { return mask >> lane & 1; }
};

class Warp {
 public:
  void start(int number, int lanes);
  void ended(int lane);  // a thread ended: whoever names it waits in vain

  using Combine = void (*)(Warp& warp, const Meeting& meeting);
  void meet(const char* what, uint32_t mask, void* operand, Combine combine, Place place);

  // Memory order between lanes: only __syncwarp makes it; shuffles and votes promise none.
  void order(uint32_t mask);
  uint32_t syncs() const { return syncs_; }  // how many __syncwarp there were so far
  // Whether a __syncwarp with both lanes came after the first `syncs`.
  bool ordered_since(uint32_t syncs, int lane, int other) const {
    return all_ordered_ > syncs || ordered_[lane][other] > syncs;
  }

  Thread& thread(int lane) const;

 private:
  void check_mask(const char* what, uint32_t mask, int lane) const;

  int number_ = 0;
  uint32_t whole_ = 0, live_ = 0;  // the lanes that there were, and those that have not ended
  std::vector<Meeting> meetings_;
  uint32_t syncs_ = 0, all_ordered_ = 0;
  bool some_ordered_ = false;
  std::array<std::array<uint32_t, kLanes>, kLanes> ordered_{};
};

}  // namespace emulator
