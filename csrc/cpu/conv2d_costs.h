// Milliseconds a count (conv2d_choice.h), fitted by benchmarks/conv2d_rule.py to the geometric mean of 1
// and 2 threads. Measured on:
//   AVX2 and baseline: AMD EPYC, avx2 kernels, torch 2.13.0+cpu
//   AVX-512: AMD EPYC, avx512 kernels, torch 2.13.0+cpu
#pragma once

namespace fastcnn::cpu {

// [AVX-512 or not][pass][algorithm][count]
// clang-format off
constexpr double kConv2dCosts[2][3][6][5] = {
    {
        {  // forward
            {0, 0, 0, 0, 0},  // automatic
            {0.007855, 0.01673, 0.07277, 0.2234, 0.1377},  // direct, median error 10 %
            {0.0005809, 0.01876, 0.2332, 0.6644, 0.2199},  // winograd_f4x3, median error 12 %
            {0.008537, 0.01701, 0.09621, 0.4121, 0.2327},  // winograd_f2x3, median error 11 %
            {0.02728, 0.01882, 0.1938, 0.374, 0.1297},  // winograd_f2x5, median error 11 %
            {0.016, 0.0172, 0.1734, 0.2943, 0.205},  // aten, median error 13 %
        },
        {  // grad_input
            {0, 0, 0, 0, 0},  // automatic
            {0.01042, 0.01774, 0.2466, 0, 0.2001},  // direct, median error 11 %
            {0.006758, 0.02467, 0, 0.4469, 0.2257},  // winograd_f4x3, median error 13 %
            {0.005183, 0.02022, 0, 0.2965, 0.3019},  // winograd_f2x3, median error 14 %
            {0.0233, 0.0113, 0.3432, 0.4814, 0.3595},  // winograd_f2x5, median error 9 %
            {0.02203, 0.01864, 0.3292, 0, 0.1838},  // aten, median error 13 %
        },
        {  // grad_weight
            {0, 0, 0, 0, 0},  // automatic
            {0.01146, 0.02102, 0.09257, 0.3031, 0.1968},  // direct, median error 12 %
            {0, 0.02529, 0.2172, 0.2595, 0.628},  // winograd_f4x3, median error 19 %
            {0.0003008, 0.02172, 0.2025, 0.2188, 0.7911},  // winograd_f2x3, median error 15 %
            {0.03427, 0.0197, 0.2316, 0.3487, 0.4919},  // winograd_f2x5, median error 11 %
            {0.02529, 0.02297, 0.07665, 0, 0.0408},  // aten, median error 16 %
        },
    },
    {
        {  // forward
            {0, 0, 0, 0, 0},  // automatic
            {0.01299, 0.01422, 0, 0.2255, 0.1359},  // direct, median error 6 %
            {0.01323, 0.01899, 0.2011, 0.4772, 0.1335},  // winograd_f4x3, median error 15 %
            {0.01001, 0.01487, 0.2687, 0.2681, 0.1864},  // winograd_f2x3, median error 12 %
            {0.02569, 0.01669, 0.1803, 0.1093, 0.2241},  // winograd_f2x5, median error 5 %
            {0.02142, 0.01432, 0.07927, 0.414, 0.1975},  // aten, median error 10 %
        },
        {  // grad_input
            {0, 0, 0, 0, 0},  // automatic
            {0.01141, 0.01487, 0.08944, 0.07969, 0.1409},  // direct, median error 8 %
            {0.01877, 0.02215, 0.04556, 0.1482, 0.1448},  // winograd_f4x3, median error 11 %
            {0.02148, 0.01696, 0, 0.123, 0.1536},  // winograd_f2x3, median error 8 %
            {0.01722, 0.02034, 0.0802, 0.1662, 0.2767},  // winograd_f2x5, median error 7 %
            {0.02765, 0.01455, 0.2702, 0.255, 0.2118},  // aten, median error 10 %
        },
        {  // grad_weight
            {0, 0, 0, 0, 0},  // automatic
            {0.009903, 0.01507, 0, 0.1719, 0.1347},  // direct, median error 8 %
            {0, 0.02749, 0.1276, 0.01218, 0.2736},  // winograd_f4x3, median error 16 %
            {0.009776, 0.01892, 0.1181, 0.1674, 0.2227},  // winograd_f2x3, median error 8 %
            {0.01445, 0.01902, 0.1171, 0.1873, 0.3439},  // winograd_f2x5, median error 5 %
            {0.03014, 0.01717, 0.005849, 0.2735, 0.1295},  // aten, median error 11 %
        },
    },
};
// clang-format on

}  // namespace fastcnn::cpu
