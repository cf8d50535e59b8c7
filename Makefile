# SPDX-License-Identifier: GPL-2.0-only
# Each target is a script; README.md says what they are for.
.PHONY: demo check check-long deps tree export drift build-stock build-hypermi build-modular \
	build-q35 build-selftests build-clang selftests kunit bench scan lint lint-test bisect mbox tables clean help
MAKEFLAGS += --no-print-directory

help:
	@sed -n '/^## Commands/,/^## /p' README.md

deps:
	@scripts/deps.sh $(EXTRA_DEPS)

build-clang check-long: EXTRA_DEPS = clang-19

demo check check-long selftests kunit bench: deps
	@scripts/check.py $@

tree: deps
	@scripts/series.sh tree

# (In this order: `export` at the start of a line is a directive.)
drift export:
	@scripts/series.sh $@

build-stock build-hypermi build-modular build-q35 build-selftests:
	@[ -e build/linux ] || scripts/series.sh tree
	@scripts/build.sh $(@:build-%=%)

build-clang: deps
	@[ -e build/linux ] || scripts/series.sh tree
	@scripts/build.sh clang

scan: build-hypermi
	@scripts/scan.py

tables:
	@scripts/tables.py

lint: deps
	@scripts/lint.sh

lint-test: deps
	@scripts/lint-test.sh

mbox: deps
	@[ -e build/linux ] || scripts/series.sh tree
	@scripts/mbox.py

bisect: deps
	@scripts/bisect.sh

# Everything that can be made again; build/linux may hold work, so it stays.
clean:
	rm -rf build/o build/run build/log build/guest build/bisect build/control build/lint-test build/*.tsv \
		build/hypermi.mbox build/scratch.img
