// SPDX-License-Identifier: Apache-2.0
#include "control/plant/thermal_network.h"

#include <cmath>

namespace thermoe {
namespace {

using Matrix = std::array<StageArray, kThermalStages>;

// Cyclic Jacobi rotations (Golub, Van Loan, Matrix Computations, section 8.5): *a becomes diagonal, rows of the result
// are its eigenvectors. Four by four converges in a few sweeps; the bound only ends the loop.
Matrix Diagonalise(Matrix* a_in) {
  Matrix& a = *a_in;
  Matrix v{};
  for (int i = 0; i < kThermalStages; ++i) v[i][i] = 1;
  for (int sweep = 0; sweep < 64; ++sweep) {
    double off = 0, on = 0;
    for (int p = 0; p < kThermalStages; ++p) {
      on += a[p][p] * a[p][p];
      for (int q = p + 1; q < kThermalStages; ++q) off += a[p][q] * a[p][q];
    }
    if (off <= 1e-32 * on) break;
    for (int p = 0; p < kThermalStages; ++p) {
      for (int q = p + 1; q < kThermalStages; ++q) {
        if (a[p][q] == 0) continue;
        const double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (int k = 0; k < kThermalStages; ++k) {  // columns p and q
          const double kp = a[k][p], kq = a[k][q];
          a[k][p] = c * kp - s * kq;
          a[k][q] = s * kp + c * kq;
        }
        for (int k = 0; k < kThermalStages; ++k) {  // rows p and q, and the eigenvectors
          const double pk = a[p][k], qk = a[q][k];
          a[p][k] = c * pk - s * qk;
          a[q][k] = s * pk + c * qk;
          const double vp = v[p][k], vq = v[q][k];
          v[p][k] = c * vp - s * vq;
          v[q][k] = s * vp + c * vq;
        }
      }
    }
  }
  return v;
}

}  // namespace

ThermalNetwork::ThermalNetwork(const DeviceProfile& p)
    : leakage_w_per_c_(p.leakage_w_per_c),
      leakage_reference_c_(p.leakage_reference_c),
      sink_conductance_w_per_c_(1 / p.sink_resistance_c_per_w) {
  root_capacity_ = {std::sqrt(p.die_capacity_j_per_c), std::sqrt(p.spreader_capacity_j_per_c),
                    std::sqrt(p.sink_capacity_j_per_c), std::sqrt(p.memory_capacity_j_per_c)};
  Matrix g{};
  const auto connect = [&g](ThermalStage i, ThermalStage j, double resistance_c_per_w) {
    const double conductance = 1 / resistance_c_per_w;
    g[i][i] += conductance;
    g[j][j] += conductance;
    g[i][j] -= conductance;
    g[j][i] -= conductance;
  };
  connect(kDie, kSpreader, p.die_resistance_c_per_w);
  connect(kMemory, kSpreader, p.memory_resistance_c_per_w);
  connect(kSpreader, kSink, p.spreader_resistance_c_per_w);
  g[kSink][kSink] += sink_conductance_w_per_c_;
  g[kDie][kDie] -= leakage_w_per_c_;
  for (int i = 0; i < kThermalStages; ++i) {
    for (int j = 0; j < kThermalStages; ++j) g[i][j] /= root_capacity_[i] * root_capacity_[j];
  }
  axes_ = Diagonalise(&g);
  for (int i = 0; i < kThermalStages; ++i) rates_per_s_[i] = g[i][i];
}

StageArray ThermalNetwork::SteadyModes(const StageArray& heat_w, double ambient_c) const {
  StageArray input = heat_w;
  input[kDie] -= leakage_w_per_c_ * leakage_reference_c_;
  input[kSink] += sink_conductance_w_per_c_ * ambient_c;
  StageArray modes{};
  for (int m = 0; m < kThermalStages; ++m) {
    for (int i = 0; i < kThermalStages; ++i) modes[m] += axes_[m][i] * input[i] / root_capacity_[i];
    modes[m] /= rates_per_s_[m];
  }
  return modes;
}

StageArray ThermalNetwork::FromModes(const StageArray& modes) const {
  StageArray temps{};
  for (int i = 0; i < kThermalStages; ++i) {
    for (int m = 0; m < kThermalStages; ++m) temps[i] += axes_[m][i] * modes[m];
    temps[i] /= root_capacity_[i];
  }
  return temps;
}

StageArray ThermalNetwork::Advance(double dt_s, const StageArray& heat_w, double ambient_c) {
  if (!(dt_s > 0)) return temps_c_;
  const StageArray steady = SteadyModes(heat_w, ambient_c);
  StageArray end, mean;
  for (int m = 0; m < kThermalStages; ++m) {
    double start = 0;
    for (int i = 0; i < kThermalStages; ++i) start += axes_[m][i] * root_capacity_[i] * temps_c_[i];
    const double x = rates_per_s_[m] * dt_s;
    const double gone = -std::expm1(-x);  // share of the way to steady
    end[m] = start + (steady[m] - start) * gone;
    mean[m] = steady[m] + (start - steady[m]) * (gone / x);
  }
  temps_c_ = FromModes(end);
  return FromModes(mean);
}

StageArray ThermalNetwork::Steady(const StageArray& heat_w, double ambient_c) const {
  return FromModes(SteadyModes(heat_w, ambient_c));
}

}  // namespace thermoe
