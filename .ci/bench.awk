# Prints the output of `go test -bench` for a person: one block for each
# package, one line for each benchmark, its own metrics in full, and the
# ratios and bars that benchmarks print as plain lines. Exits with 1 when a
# benchmark failed, which a pipe would otherwise hide.
/^pkg: /              { printf "\n%s\n", $2; next }
/^(goos|goarch|PASS)/ { next }
/^ok /                { next }
/^(FAIL|FAILED|--- FAIL|panic:)/ { failed = 1 }
/^Benchmark/ && NF >= 4 {
	name = $1
	sub(/^Benchmark/, "", name)
	sub(/-[0-9]+$/, "", name)
	line = sprintf("  %-44s", name)
	for (i = 3; i < NF; i += 2) line = line sprintf(" %14s %s", $i, $(i + 1))
	print line
	next
}
{ print }
END { exit failed }
