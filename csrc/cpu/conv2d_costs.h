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
            {0.008241, 0.01665, 0.05121, 0.1915, 0.1946},  // direct, median error 11 %
            {0.004928, 0.01946, 0.2162, 0.5514, 0.2084},  // winograd_f4x3, median error 11 %
            {0.006419, 0.01761, 0.1262, 0.337, 0.2418},  // winograd_f2x3, median error 10 %
            {0.00665, 0.01569, 0.2349, 0.4059, 0.3924},  // winograd_f2x5, median error 11 %
            {0.01913, 0.01739, 0.1373, 0.2704, 0.2135},  // aten, median error 16 %
        },
        {  // grad_input
            {0, 0, 0, 0, 0},  // automatic
            {0.009333, 0.01696, 0.2469, 0, 0.3},  // direct, median error 10 %
            {0.006084, 0.02214, 0.2198, 0.4577, 0.2341},  // winograd_f4x3, median error 11 %
            {0.005114, 0.0171, 0.1481, 0.3854, 0.3251},  // winograd_f2x3, median error 12 %
            {0.007098, 0.01704, 0.1849, 0.4381, 0.506},  // winograd_f2x5, median error 6 %
            {0.02718, 0.0183, 0.2965, 0.009224, 0.2326},  // aten, median error 17 %
        },
        {  // grad_weight
            {0, 0, 0, 0, 0},  // automatic
            {0.007687, 0.02046, 0.3152, 0.278, 0.1882},  // direct, median error 13 %
            {0.004843, 0.0244, 0.3096, 0.2743, 0.4893},  // winograd_f4x3, median error 15 %
            {0.01165, 0.01981, 0.186, 0.2465, 0.5643},  // winograd_f2x3, median error 12 %
            {0, 0.01227, 0.3615, 0.3977, 0.9647},  // winograd_f2x5, median error 10 %
            {0.02019, 0.02393, 0.1994, 0.05127, 0.07874},  // aten, median error 21 %
        },
    },
    {
        {  // forward
            {0, 0, 0, 0, 0},  // automatic
            {0.01644, 0.01444, 0.04012, 0.1279, 0.176},  // direct, median error 7 %
            {0.02151, 0.02103, 0.1054, 0.241, 0.1585},  // winograd_f4x3, median error 14 %
            {0.01946, 0.01623, 0.1381, 0.1711, 0.2085},  // winograd_f2x3, median error 13 %
            {0.01639, 0.01644, 0.1538, 0.1871, 0.3589},  // winograd_f2x5, median error 9 %
            {0.03807, 0.01419, 0.09221, 0.4312, 0.2334},  // aten, median error 13 %
        },
        {  // grad_input
            {0, 0, 0, 0, 0},  // automatic
            {0.01701, 0.01458, 0.1335, 0.05432, 0.1661},  // direct, median error 8 %
            {0.02144, 0.02122, 0.1766, 0.1237, 0.1687},  // winograd_f4x3, median error 11 %
            {0.01935, 0.01527, 0.1151, 0.1326, 0.2248},  // winograd_f2x3, median error 8 %
            {0.01263, 0.01768, 0.2614, 0.03102, 0.5812},  // winograd_f2x5, median error 8 %
            {0.04183, 0.01435, 0.288, 0.1404, 0.2406},  // aten, median error 14 %
        },
        {  // grad_weight
            {0, 0, 0, 0, 0},  // automatic
            {0.01591, 0.01483, 0.1811, 0.2658, 0.1383},  // direct, median error 8 %
            {0.005994, 0.02298, 0.2821, 0.1109, 0.2834},  // winograd_f4x3, median error 18 %
            {0.01151, 0.01794, 0.1252, 0.1486, 0.3112},  // winograd_f2x3, median error 11 %
            {0.01837, 0.01739, 0.1811, 0.1329, 0.5898},  // winograd_f2x5, median error 16 %
            {0.04156, 0.01793, 0.09928, 0.197, 0.1161},  // aten, median error 18 %
        },
    },
};
// clang-format on

}  // namespace fastcnn::cpu
