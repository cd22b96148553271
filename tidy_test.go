// Package throng_test holds the rules of the house that a compiler does not
// know: who may import whom, what is pure, how long things may be, and that
// what the documents say can be run. Each failure says why the rule exists.
// A rule that turns out wrong is changed here, with its reason, not worked
// around.
package throng_test

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"throng/sim/scenario"
)

// Limits of size, in lines.
const (
	maxFuncLines = 70
	maxFileLines = 600
)

// longFuncs and longFiles may be longer, each with its reason.
var (
	longFuncs = map[string]string{}
	longFiles = map[string]string{
		"tidy_test.go": "the top folder has room for one file of rules",
	}
)

// packageVars are package variables that are neither constant by nature nor
// read-only tables, each with its reason.
var packageVars = map[string]string{}

// topLevel is all that may lie in the project's top folder.
var topLevel = []string{
	"system", "sim", "scenarios", "reports", "testdata", "go.mod", "go.sum", "Makefile", "README.md", "ARCHITECTURE.md",
	"CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "tidy_test.go", ".ci", ".github", ".gitignore", ".golangci.yml",
	".git", "bin", // not part of the project
}

var (
	roles = []string{"gateway", "message", "fanout", "group", "inbox", "push", "media"}

	// pure packages are functions of their arguments, so that a seed gives the
	// same run on every machine and a recorded run the same verdict for ever.
	pure = []string{
		"system/placement", "sim/scenario", "sim/population", "sim/workload", "sim/metrics", "sim/audit", "sim/capacity",
	}

	// technologies have one folder each, so that another can take its place.
	technologies = map[string][]string{
		"github.com/segmentio/kafka-go": {"system/internal/kafka", "sim/target"}, // target: how much the broker holds
		"modernc.org/sqlite":            {"system/internal/sqlstore"},
		"gonum.org/v1/plot":             {"sim/report"},
		"github.com/spf13/cobra":        {"sim/cmd", "sim/target/infra", "system"},
		"github.com/goccy/go-yaml":      {"sim/scenario", "sim/target/external"},
		"github.com/gorilla/websocket":  {"system/internal/gateway", "sim/client", "sim/load", "sim/cmd/peers"}, // load: the type of a close error; peers: clients of others' servers
		"github.com/twmb/franz-go":      {"sim/target/infra"},
		"github.com/alicebob/miniredis": {"sim/target/infra"},
		"github.com/testcontainers":     {"sim/target/containers"},
		"github.com/moby/moby":          {"sim/target/containers"},
		"github.com/go-sql-driver":      {"system/internal/sqlstore", "sim/target/containers"},
		"github.com/nats-io":            {"sim/crew"},
		"github.com/redis/rueidis":      {"system"},
		"google.golang.org/grpc":        {"system"},
		"gocloud.dev":                   {"system/internal/blob"},
		"github.com/tus/tusd":           {"system/internal/media"},
		"pgregory.net/rapid":            {}, // tests only
		"go.uber.org/goleak":            {},
	}
)

const module = "throng/"

// source is one Go file of the project. path is from the top, with slashes.
type source struct {
	path, dir       string
	test, generated bool
	lines           int
	file            *ast.File
	imports         []string
}

// in says whether the file lies in the folder or below it.
func (s *source) in(dir string) bool { return s.dir == dir || strings.HasPrefix(s.dir, dir+"/") }

func (s *source) inAny(dirs []string) bool { return slices.ContainsFunc(dirs, s.in) }

func TestTidy(t *testing.T) {
	fset := token.NewFileSet()
	files := parseAll(t, fset)
	at := func(n ast.Node) string {
		p := fset.Position(n.Pos())
		return fmt.Sprintf("%s:%d", filepath.ToSlash(p.Filename), p.Line)
	}

	t.Run("imports", func(t *testing.T) { checkImports(t, files) })
	t.Run("technologies", func(t *testing.T) { checkTechnologies(t, files) })
	t.Run("pure", func(t *testing.T) { checkPure(t, files, at) })
	t.Run("randomness", func(t *testing.T) { checkRandomness(t, files, at) })
	t.Run("state", func(t *testing.T) { checkState(t, files, at) })
	t.Run("packages", func(t *testing.T) { checkPackages(t, files) })
	t.Run("sizes", func(t *testing.T) { checkSizes(t, fset, files) })
	t.Run("sleep", func(t *testing.T) { checkSleep(t, files, at) })
	t.Run("sql", func(t *testing.T) { checkSQL(t, files, at) })
}

// parseAll reads every Go file that is part of the project.
func parseAll(t *testing.T, fset *token.FileSet) []*source {
	t.Helper()
	var files []*source
	walk(t, func(name string, data []byte) {
		if !strings.HasSuffix(name, ".go") {
			return
		}
		file, err := parser.ParseFile(fset, name, data, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		s := &source{
			path: name, dir: path.Dir(name), file: file,
			test: strings.HasSuffix(name, "_test.go"), generated: ast.IsGenerated(file), lines: bytes.Count(data, []byte("\n")),
		}
		for _, spec := range file.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatalf("%s: import %s: %v", name, spec.Path.Value, err)
			}
			s.imports = append(s.imports, imp)
		}
		files = append(files, s)
	})
	if len(files) == 0 {
		t.Fatal("no Go file found: the test has to run in the project's top folder")
	}
	return files
}

// walk calls visit for every file that git would take, with its path from the
// top: hidden files too, but not what .gitignore names.
func walk(t *testing.T, visit func(name string, data []byte)) {
	t.Helper()
	skip := []string{".git", "bin", "reports/runs", "reports/bench/latest.txt", "testdata/client/node_modules"} // .gitignore has them too
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		name = filepath.ToSlash(name)
		switch {
		case err != nil:
			return err
		case slices.Contains(skip, name) && d.IsDir():
			return filepath.SkipDir
		case slices.Contains(skip, name) || !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // somebody's temporary file
		}
		if err == nil {
			visit(name, data)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// importRule forbids imports of one part of the project by another.
type importRule struct {
	why     string
	applies func(s *source) bool
	allowed func(s *source, imp string) bool // imp is from the top, "system/wire"
}

func importRules() []importRule {
	role := func(dir string) string {
		for _, r := range roles {
			if dir == "system/internal/"+r || strings.HasPrefix(dir, "system/internal/"+r+"/") {
				return r
			}
		}
		return ""
	}
	return []importRule{
		{
			why:     "system is a server that stands on its own: it never imports sim",
			applies: func(s *source) bool { return s.in("system") },
			allowed: func(_ *source, imp string) bool { return !strings.HasPrefix(imp, "sim/") },
		},
		{
			why: "the harness sees the backend as any client does: sim imports only system/wire and system/placement " +
				"(sim/target, which starts it, may import system, and so may sim/cmd, whose binary its processes are)",
			applies: func(s *source) bool { return s.in("sim") },
			allowed: func(s *source, imp string) bool {
				return strings.HasPrefix(imp, "sim/") || imp == "system/wire" || imp == "system/placement" ||
					imp == "system" && (s.in("sim/target") || s.in("sim/cmd"))
			},
		},
		{
			why: "a role is given what it talks to: it imports no other role and no adapter, only wire, placement, rpc, limit and obs " +
				"(its tests may use an adapter)",
			applies: func(s *source) bool { return role(s.dir) != "" },
			allowed: func(s *source, imp string) bool {
				own := "system/internal/" + role(s.dir)
				switch {
				case imp == own || strings.HasPrefix(imp, own+"/"):
					return true
				case slices.Contains([]string{"system/wire", "system/placement", "system/internal/rpc", "system/internal/obs", "system/internal/limit"}, imp):
					return true
				}
				return s.test && strings.HasPrefix(imp, "system/internal/") && role(imp) == ""
			},
		},
		{
			why:     "system is the sole place of wiring: nobody else imports a role, except the adapter of an interface that the role declares",
			applies: func(s *source) bool { return s.dir != "system" && role(s.dir) == "" },
			allowed: func(s *source, imp string) bool { return role(imp) == "" || s.in("system/internal") },
		},
		{
			why:     "a pure package stays pure only if what it imports is: pure packages, wire, and the record types of history",
			applies: func(s *source) bool { return !s.test && s.inAny(pure) },
			allowed: func(_ *source, imp string) bool {
				return slices.Contains(pure, imp) || imp == "system/wire" || imp == "sim/history"
			},
		},
		{
			why:     "wire and placement are leaves: both halves and everybody else's tools build on them",
			applies: func(s *source) bool { return s.in("system/wire") || s.in("system/placement") },
			allowed: func(s *source, imp string) bool {
				return strings.HasPrefix(imp, "system/wire") || strings.HasPrefix(imp, "system/placement")
			},
		},
	}
}

func checkImports(t *testing.T, files []*source) {
	for _, rule := range importRules() {
		applied := false
		for _, s := range files {
			if !rule.applies(s) {
				continue
			}
			applied = true
			for _, imp := range s.imports {
				if local, ok := strings.CutPrefix(imp, module); ok && !rule.allowed(s, local) {
					t.Errorf("%s imports %s\n\t%s", s.path, imp, rule.why)
				}
			}
		}
		if !applied {
			t.Errorf("no file to check this rule on: %s", rule.why)
		}
	}
}

func checkTechnologies(t *testing.T, files []*source) {
	for _, s := range files {
		for _, imp := range s.imports {
			for technology, homes := range technologies {
				if imp != technology && !strings.HasPrefix(imp, technology+"/") || s.test || s.inAny(homes) {
					continue
				}
				t.Errorf("%s imports %s\n\tonly %v may outside of tests: one folder a technology, so that another can take its place",
					s.path, imp, homes)
			}
		}
	}
}

// calls visits every use of a name of a package, as in time.Now.
func calls(s *source, pkg string, visit func(sel *ast.SelectorExpr)) {
	local := ""
	for _, spec := range s.file.Imports {
		if p, _ := strconv.Unquote(spec.Path.Value); p == pkg {
			local = strings.TrimSuffix(path.Base(p), "/v2")
			if path.Base(p) == "v2" {
				local = path.Base(path.Dir(p))
			}
			if spec.Name != nil {
				local = spec.Name.Name
			}
		}
	}
	if local == "" {
		return
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if id, ok := sel.X.(*ast.Ident); ok && id.Name == local && id.Obj == nil {
				visit(sel)
			}
		}
		return true
	})
}

// checkSQL: the compiler takes constants alone for a sqlstore.Text, unless somebody
// converts a string, or goes past sqlstore.
func checkSQL(t *testing.T, files []*source, at func(ast.Node) string) {
	const why = "\n\ta value is an argument of a statement and never a part of its text: only constants, and what is made of them, are SQL"
	store, text := "system/internal/sqlstore", "throng/system/internal/sqlstore"
	used := false
	for _, s := range files {
		if s.test || !s.in("system") || s.in(store) {
			continue
		}
		calls(s, "database/sql", func(sel *ast.SelectorExpr) {
			switch sel.Sel.Name {
			case "DB", "Conn", "Tx", "Stmt", "Open", "OpenDB":
				t.Errorf("%s: sql.%s outside of %s%s", at(sel), sel.Sel.Name, store, why)
			}
		})
		calls(s, text, func(sel *ast.SelectorExpr) { used = used || sel.Sel.Name == "Text" })
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 1 {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Text" {
				return true
			}
			if id, ok := sel.X.(*ast.Ident); !ok || id.Name != "sqlstore" {
				return true
			}
			if _, constant := call.Args[0].(*ast.BasicLit); !constant {
				t.Errorf("%s: a string is made SQL%s", at(call), why)
			}
			return true
		})
	}
	if !used {
		t.Errorf("nothing uses %s.Text: this rule looks at nothing", store)
	}
}

// checkPure: no network, no processes, no clock, no goroutines.
func checkPure(t *testing.T, files []*source, at func(ast.Node) string) {
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer"}
	for _, s := range files {
		if s.test || !s.inAny(pure) {
			continue
		}
		for _, imp := range s.imports {
			if imp == "net" || strings.HasPrefix(imp, "net/") && imp != "net/url" || imp == "os/exec" || imp == "os/signal" ||
				imp == "syscall" || strings.HasPrefix(imp, "golang.org/x/net") || strings.HasPrefix(imp, "google.golang.org/grpc") {
				t.Errorf("%s imports %s\n\t%s is pure: no network, no processes", s.path, imp, s.dir)
			}
		}
		calls(s, "time", func(sel *ast.SelectorExpr) {
			if slices.Contains(clock, sel.Sel.Name) {
				t.Errorf("%s: time.%s\n\t%s is pure: time is an argument, never the machine's clock", at(sel), sel.Sel.Name, s.dir)
			}
		})
		ast.Inspect(s.file, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: go statement\n\t%s is pure: whoever calls it decides about goroutines", at(g), s.dir)
			}
			return true
		})
	}
}

// checkRandomness: everything random in sim comes out of the scenario's seed.
func checkRandomness(t *testing.T, files []*source, at func(ast.Node) string) {
	types := []string{"New", "NewPCG", "NewChaCha8", "NewZipf", "Rand", "Source", "PCG", "ChaCha8", "Zipf"}
	for _, s := range files {
		if !s.in("sim") || s.in("sim/target") { // a free port is not part of the run
			continue
		}
		if slices.Contains(s.imports, "math/rand") {
			t.Errorf("%s imports math/rand\n\tuse math/rand/v2", s.path)
		}
		calls(s, "math/rand/v2", func(sel *ast.SelectorExpr) {
			if !slices.Contains(types, sel.Sel.Name) {
				t.Errorf("%s: rand.%s draws from a shared generator\n\tthe same seed has to give the same run: take a *rand.Rand derived from the scenario's seed",
					at(sel), sel.Sel.Name)
			}
		})
	}
}

// checkState: no init, no registries, no package variables that can change.
func checkState(t *testing.T, files []*source, at func(ast.Node) string) {
	const why = "\n\ttwo instances in one process must not share anything, and a test must not see what another has left behind"
	seen := map[string]bool{}
	for _, s := range files {
		if s.test || s.generated {
			continue
		}
		for _, decl := range s.file.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: func init\n\tnothing happens by being imported: the caller says what is to happen", at(fn))
			}
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.VAR {
				continue
			}
			for _, spec := range gen.Specs {
				v := spec.(*ast.ValueSpec)
				for i, name := range v.Names {
					key := s.dir + "." + name.Name
					seen[key] = true
					if packageVars[key] != "" || name.Name == "_" || isError(v, i) || isEmbed(v, gen) {
						continue
					}
					if !isTable(v, i) {
						t.Errorf("%s: package variable %s"+why, at(name), name.Name)
					} else if where := writtenAt(files, s.dir, name, at); where != "" {
						t.Errorf("%s: package variable %s may be a table to read, but %s can change it"+why, at(name), name.Name, where)
					}
				}
			}
		}
	}
	for key := range packageVars {
		if !seen[key] {
			t.Errorf("packageVars lists %s, which is gone", key)
		}
	}
}

// isError: a sentinel, errors.New or fmt.Errorf, or an error value of the
// project's own type, named Err... or err....
func isError(v *ast.ValueSpec, i int) bool {
	if i >= len(v.Values) {
		return false
	}
	call, ok := v.Values[i].(*ast.CallExpr)
	if ok {
		if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
			if id, ok := sel.X.(*ast.Ident); ok && (id.Name == "errors" && sel.Sel.Name == "New" || id.Name == "fmt" && sel.Sel.Name == "Errorf") {
				return true
			}
		}
	}
	return strings.HasPrefix(v.Names[i].Name, "Err") || strings.HasPrefix(v.Names[i].Name, "err")
}

// isEmbed: filled by the compiler from files.
func isEmbed(v *ast.ValueSpec, gen *ast.GenDecl) bool {
	for _, doc := range []*ast.CommentGroup{v.Doc, gen.Doc} {
		if doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") }) {
			return true
		}
	}
	return false
}

// isTable: a literal of an array, slice, map or struct without pointers to
// shared things, or a compiled pattern or template; to be read only.
func isTable(v *ast.ValueSpec, i int) bool {
	if i >= len(v.Values) {
		return false
	}
	switch x := v.Values[i].(type) {
	case *ast.CompositeLit:
		sel, ok := x.Type.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		id, ok := sel.X.(*ast.Ident)
		return ok && id.Name != "sync" && id.Name != "atomic"
	case *ast.CallExpr:
		if sel, ok := x.Fun.(*ast.SelectorExpr); ok {
			return sel.Sel.Name == "MustCompile" || sel.Sel.Name == "Must" || sel.Sel.Name == "NewReplacer"
		}
	}
	return false
}

// writtenAt finds a place in the package that could change a package variable:
// an assignment to it or into it, its address, or a builtin that changes it.
func writtenAt(files []*source, dir string, name *ast.Ident, at func(ast.Node) string) string {
	where := ""
	isIt := func(e ast.Expr) bool {
		for {
			switch x := e.(type) {
			case *ast.IndexExpr:
				e = x.X
			case *ast.SelectorExpr:
				e = x.X
			case *ast.ParenExpr:
				e = x.X
			case *ast.SliceExpr:
				e = x.X
			case *ast.Ident:
				return x.Name == name.Name && (x.Obj == nil || x.Obj == name.Obj)
			default:
				return false
			}
		}
	}
	for _, s := range files {
		if s.dir != dir || s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			var written []ast.Expr
			switch x := n.(type) {
			case *ast.AssignStmt:
				written = x.Lhs
			case *ast.IncDecStmt:
				written = []ast.Expr{x.X}
			case *ast.UnaryExpr:
				if x.Op == token.AND {
					written = []ast.Expr{x.X}
				}
			case *ast.CallExpr:
				if id, ok := x.Fun.(*ast.Ident); ok && slices.Contains([]string{"append", "clear", "copy", "delete"}, id.Name) {
					written = x.Args[:1]
				}
			}
			if slices.ContainsFunc(written, isIt) {
				where = at(n)
			}
			return true
		})
	}
	return where
}

// checkPackages: every package says what it is for, and is not named after
// nothing.
func checkPackages(t *testing.T, files []*source) {
	empty := []string{"util", "utils", "common", "helper", "helpers", "base", "types", "models", "pkg", "misc", "shared"}
	documented := map[string]bool{}
	for _, s := range files {
		if s.test {
			continue
		}
		documented[s.dir] = documented[s.dir] || s.file.Doc != nil && !s.generated
		if slices.Contains(empty, s.file.Name.Name) || slices.Contains(empty, path.Base(s.dir)) {
			t.Errorf("%s: package %s\n\ta package is named after what it provides, not after what is in it", s.path, s.file.Name.Name)
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment\n\tits first file says what the package is for, what it owns and what it may not import", dir)
		}
	}
}

func checkSizes(t *testing.T, fset *token.FileSet, files []*source) {
	type length struct {
		name  string
		lines int
	}
	var funcs []length
	for _, s := range files {
		if s.generated {
			continue
		}
		if s.lines > maxFileLines && longFiles[s.path] == "" {
			t.Errorf("%s has %d lines\n\tover 600 nobody reads a file from top to bottom: split it by what it is about", s.path, s.lines)
		}
		for _, decl := range s.file.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && !s.test && fn.Body != nil {
				n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
				funcs = append(funcs, length{s.dir + "." + fn.Name.Name, n})
			}
		}
	}
	slices.SortFunc(funcs, func(a, b length) int { return b.lines - a.lines })
	seen := map[string]bool{}
	for i, f := range funcs {
		if i < 10 {
			t.Logf("%4d lines: %s", f.lines, f.name)
		}
		if f.lines > maxFuncLines && longFuncs[f.name] == "" {
			t.Errorf("%s has %d lines\n\tover 70 a function does several things: name them", f.name, f.lines)
		}
		seen[f.name] = seen[f.name] || f.lines > maxFuncLines
	}
	for name := range longFuncs {
		if !seen[name] {
			t.Errorf("longFuncs lists %s, which is gone or short", name)
		}
	}
}

// checkSleep: a test that sleeps is either slow or wrong, and on a loaded
// machine both.
func checkSleep(t *testing.T, files []*source, at func(ast.Node) string) {
	for _, s := range files {
		if !s.test || slices.Contains(s.imports, "testing/synctest") {
			continue
		}
		calls(s, "time", func(sel *ast.SelectorExpr) {
			if sel.Sel.Name == "Sleep" {
				t.Errorf("%s: time.Sleep in a test\n\tuse testing/synctest, or wait for a condition with a deadline", at(sel))
			}
		})
	}
}

// TestScenarios: every scenario parses, and its first comment says what it asks.
func TestScenarios(t *testing.T) {
	names, err := filepath.Glob("scenarios/*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatalf("no scenarios found: %v", err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(data, []byte("# ")) {
			t.Errorf("%s does not begin with a comment: the question, how long it takes, the verdict to expect", name)
		}
		spec, err := scenario.Load(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := strings.TrimSuffix(filepath.Base(name), ".yaml"); spec.Name != want {
			t.Errorf("%s is named %q inside", name, spec.Name)
		}
	}
}

// TestTopLevel: the top folder stays what a newcomer can take in at a glance.
func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(topLevel, e.Name()) {
			t.Errorf("%s: not in the project's top folder (see topLevel)", e.Name())
		}
	}
}

// TestNoMachine: nothing that is committed knows the machine it was written on.
func TestNoMachine(t *testing.T) {
	patterns := map[string]*regexp.Regexp{
		"a home or work folder": regexp.MustCompile(`(^|[\s"'=(:` + "`" + `])/(root|work|home/[a-z0-9._-]+|Users/[A-Za-z0-9._-]+)/[\w.-]`),
		"a package mirror":      regexp.MustCompile(`https?://[a-z0-9.-]*(proxy|registry|mirror)[a-z0-9-]*\.[a-z]`),
	}
	walk(t, func(name string, data []byte) {
		if bytes.IndexByte(data, 0) >= 0 {
			return // not text
		}
		for i, line := range strings.Split(string(data), "\n") {
			for what, re := range patterns {
				if m := re.FindString(line); m != "" {
					t.Errorf("%s:%d names %s: %q", name, i+1, what, strings.TrimSpace(m))
				}
			}
		}
	})
}

// TestLinks: a link in a document leads to something that is there.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)[^)]*\)`)
	documents, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("*/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range append(documents, more...) {
		data, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(data), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
			}
		}
	}
}

// commands returns the command lines in the ```sh blocks of a document.
func commands(t *testing.T, doc string) []string {
	t.Helper()
	data, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	inside := false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```sh"
		case inside:
			command, _, _ := strings.Cut(line, " #")
			if command = strings.TrimSpace(command); command != "" && !strings.HasPrefix(command, "#") {
				lines = append(lines, command)
			}
		}
	}
	if len(lines) == 0 {
		t.Fatalf("%s has no sh block", doc)
	}
	return lines
}

// TestCommands: every command in the documents works. What is cheap is run;
// a run of a scenario and whole make targets are checked down to the names of
// targets, variables, flags and scenarios.
func TestCommands(t *testing.T) {
	throng := filepath.Join(t.TempDir(), "throng")
	// The flags of the Makefile, so that nothing is compiled for this alone.
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", throng, "./sim/cmd/throng")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, doc := range []string{"README.md", "CONTRIBUTING.md"} {
		for _, line := range commands(t, doc) {
			t.Run(doc+"/"+line, func(t *testing.T) {
				if err := tryCommand(t, throng, strings.Fields(line)); err != nil {
					t.Errorf("%s: `%s`: %v", doc, line, err)
				}
			})
		}
	}
}

// tryCommand runs or checks one command.
func tryCommand(t *testing.T, throng string, args []string) error {
	switch args[0] {
	case "git", "cd", "cp", "open":
		return nil
	case "make":
		for _, arg := range args[1:] {
			if name, ok := strings.CutPrefix(arg, "SCENARIO="); ok {
				if _, err := os.Stat(filepath.Join("scenarios", name+".yaml")); err != nil {
					return err
				}
			}
			if name, _, ok := strings.Cut(arg, "="); ok {
				makefile, err := os.ReadFile("Makefile")
				if err != nil {
					return err
				}
				if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + `\s*[?:]?=`).Match(makefile) {
					return fmt.Errorf("the Makefile knows no %s", name)
				}
			}
		}
		return output(exec.CommandContext(t.Context(), "make", append([]string{"-n"}, args[1:]...)...))
	case "go":
		return checkGo(args)
	case "bin/throng":
		switch {
		case len(args) > 2 && args[1] == "run":
			return checkRun(t, throng, args[2:])
		case len(args) > 2 && args[1] == "report" && strings.HasPrefix(args[2], "reports/runs/"):
			args = []string{"", "report", "--help"} // raw runs are not committed
		}
		return output(exec.CommandContext(t.Context(), throng, args[1:]...))
	case ".ci/run", ".ci/gate":
		info, err := os.Stat(args[0])
		if err == nil && info.Mode()&0o111 == 0 {
			err = errors.New("not executable")
		}
		return err
	}
	return errors.New("tidy_test.go does not know how to try this command")
}

// checkRun checks the scenario and the flags of a `throng run`.
func checkRun(t *testing.T, throng string, args []string) error {
	help, err := exec.CommandContext(t.Context(), throng, "run", "--help").CombinedOutput()
	if err != nil {
		return fmt.Errorf("throng run --help: %w", err)
	}
	for _, arg := range args[1:] {
		flag, _, _ := strings.Cut(arg, "=")
		if strings.HasPrefix(flag, "--") && !regexp.MustCompile(regexp.QuoteMeta(flag)+`\b`).Match(help) {
			return fmt.Errorf("throng run knows no %s", flag)
		}
	}
	// Describing it reads it by file or name, as a run would.
	return output(exec.CommandContext(t.Context(), throng, "scenario", "describe", args[0]))
}

// checkGo checks that the packages of a go command are there.
func checkGo(args []string) error {
	for _, arg := range args[1:] {
		if dir, ok := strings.CutPrefix(arg, "./"); ok {
			if _, err := os.Stat(filepath.Clean(strings.TrimSuffix(dir, "..."))); err != nil {
				return err
			}
		}
	}
	return nil
}

func output(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
