# SPDX-License-Identifier: Apache-2.0
# make run: install what is missing, build, generate text with the bundled model, half a minute of demonstration. make test: the same
PRESET ?= $(if $(CI),ci,release)
BUILD := build/$(PRESET)
JOBS ?= $(shell nproc)

.PHONY: run test build packages format clean

run: build
	$(BUILD)/thermoe run -p "The old lighthouse keeper looked out over the sea and" -n 96 --seed 7
	@echo
	$(BUILD)/thermoe demo

test: packages
	cmake --preset $(PRESET) -DTHERMOE_TESTS=ON >/dev/null
	cmake --build $(BUILD) -j $(JOBS)
	ctest --test-dir $(BUILD) -j $(JOBS) --output-on-failure --progress

build: packages
	cmake --preset $(PRESET) >/dev/null
	cmake --build $(BUILD) -j $(JOBS) --target thermoe_app

packages:
	@scripts/install-packages

format:
	git ls-files '*.cc' '*.h' | xargs clang-format -i

clean:
	rm -rf build
