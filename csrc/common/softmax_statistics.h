// What a row of softmax leaves for its backward, on either device.
#pragma once

namespace fastllm {

// The weight of a score is exp(score - maximum) * inverse_sum. The two stay apart: beside a large maximum their
// logsumexp, maximum - log(inverse_sum), has no bits left for the sum.
template <typename C>
struct alignas(2 * sizeof(C)) SoftmaxStatistics {
  C maximum;
  C inverse_sum;
};

}  // namespace fastllm
