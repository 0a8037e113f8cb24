// SPDX-License-Identifier: Apache-2.0
#include "thermoe/control.h"

namespace thermoe {

const char* EnergySourceName(EnergySource source) {
  switch (source) {
    case EnergySource::kNone: return "none";
    case EnergySource::kEstimate: return "estimate";
    case EnergySource::kCounter: return "counter";
    case EnergySource::kPower: return "power";
    case EnergySource::kReplayed: return "replayed";
    case EnergySource::kSimulated: return "simulated";
  }
  return "none";
}

}  // namespace thermoe
