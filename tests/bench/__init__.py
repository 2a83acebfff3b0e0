# SPDX-License-Identifier: Apache-2.0
"""``make bench``: measures with ``lb bench``, keeps the answers, and draws docs/benchmarks.md from them.

measure   runs the commands of each section; the answers are docs/benchmarks/*.json
plots     answers -> docs/images/bench-*.svg
page      answers -> the text of docs/benchmarks.md
"""
