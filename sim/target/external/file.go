package external

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"throng/system/wire"
)

// DefaultMaxSendsPerS is how many sends a second a deployment gets at most
// where its file says nothing else.
const DefaultMaxSendsPerS = 100

// File is a target file that has been read: a deployment, and what it lets be
// done to it. It is not changed after Load.
type File struct {
	Path         string
	Name         string
	Gateways     []string          // ws://host:port or wss://host:port
	CA           *x509.CertPool    // for wss:// and https://; nil: the system's
	CAPEM        []byte            // what CA was made of
	AllowLoad    bool              // hosts of other machines may be loaded
	MaxSendsPerS float64           // of any phase
	Versions     map[string]string // of components, as declared

	// Key signs tokens; nil when they were made before.
	Key    wire.Key
	Tokens map[Device]string

	Provisioning string // base URL of a group instance's API, "" without
	AdminToken   string // for it; "": Key signs one
	Provisioned  bool   // users and groups are there already
	// Generation of the users, see population.Generation; below 0: another one
	// for each run, so that no user has sent anything before.
	Generation int

	PushesURL  string // base URL of a provider's feed, "" without
	Partitions int    // of the groups' log, 0 not known
	CPU        bool   // the metrics show CPU and memory
	Instances  []Instance
}

// Device is whom a token is for.
type Device struct {
	User   uint64
	Device uint32
}

// Instance is one process of the deployment.
type Instance struct {
	Role     string
	Instance int
	Metrics  string   // URL, "" without
	Kill     []string // command and arguments, nil without
	Restart  []string
	Flush    []string
}

// Roles that an instance may have.
func instanceRoles() []string {
	return []string{"gateway", "message", "fanout", "group", "inbox", "push", "kafka", "redis", "mysql", "provider"}
}

// Load reads a target file. getenv looks up what key_env and
// provisioning_token_env name; other files are relative to the target file.
// The error is a scenario.Errors when the file's content is at fault.
func Load(path string, getenv func(string) string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read target file: %w", err)
	}
	r := &reader{file: path, getenv: getenv, places: places{}}
	f := &File{Path: path, Name: strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)), MaxSendsPerS: DefaultMaxSendsPerS, Versions: map[string]string{}}
	root, err := r.parse(data)
	if err != nil {
		return nil, err
	}
	f.Generation = -1
	r.mapping(root, "", r.fields(f))
	if f.Generation < 0 && (f.Provisioned || f.Tokens != nil) {
		f.Generation = 0 // whoever made the users cannot know the time of the run
	}
	r.consistent(f)
	if len(r.errs) > 0 {
		return nil, r.errs
	}
	return f, nil
}

// fields is the whole file.
func (r *reader) fields(f *File) []field {
	return []field{
		{"name", "text of 1 to 60 characters", text(&f.Name, func(s string) bool { return s != "" && len(s) <= 60 })},
		{"gateways", "a list of ws://host:port or wss://host:port, without a path", r.list(&f.Gateways, isGateway)},
		{"allow_load", "true or false", flag(&f.AllowLoad)},
		{"max_sends_per_s", "a number above 0", number(&f.MaxSendsPerS)},
		{"versions", "a mapping of component: version", r.texts(f.Versions)},
		{"ca_file", "a PEM file with the certificates that sign those of wss:// and https://", r.fromFile(func(s string) error { return setCA(f, s) })},
		{"key", "the signing key, in base64, of at least 32 bytes", r.secret(func(s string) error { return setKey(f, s) })},
		{"key_env", "the name of an environment variable that holds the signing key", r.fromEnv(func(s string) error { return setKey(f, s) })},
		{"key_file", "a file that holds the signing key, in base64", r.fromFile(func(s string) error { return setKey(f, s) })},
		{"tokens_file", "a file with a line `user device token` for each device", r.fromFile(func(s string) error { return setTokens(f, s) })},
		{"provisioning_url", "http://host:port or https://host:port of a group instance's API", text(&f.Provisioning, isHTTP)},
		{"provisioning_token_env", "the name of an environment variable that holds an administrator's token", r.fromEnv(func(s string) error { f.AdminToken = s; return nil })},
		{"provisioning_token_file", "a file that holds an administrator's token", r.fromFile(func(s string) error { f.AdminToken = s; return nil })},
		{"generation", "a whole number from 0 to 2097151, the same for every run; left out, each run has users of its own", integer(&f.Generation, 0, 1<<21-1)},
		{"provisioned", "true or false", flag(&f.Provisioned)},
		{"pushes_url", "http://host:port or https://host:port of the push provider, whose /feed lists what it accepted", text(&f.PushesURL, isHTTP)},
		{"partitions", "a whole number from 1 to 4096", integer(&f.Partitions, 1, 4096)},
		{"cpu", "true or false", flag(&f.CPU)},
		{"instances", "a list of mappings with role, instance, metrics, kill, restart, flush", r.instances(f)},
	}
}

func (r *reader) instanceFields(in *Instance) []field {
	return []field{
		{"role", "one of " + strings.Join(instanceRoles(), ", "), text(&in.Role, func(s string) bool { return slices.Contains(instanceRoles(), s) })},
		{"instance", "a whole number from 0 to 4095", integer(&in.Instance, 0, 4095)},
		{"metrics", "http://host:port/metrics or the like", text(&in.Metrics, isURL("http", "https"))},
		{"kill", "a list: the command that ends the process at once, and its arguments", r.list(&in.Kill, notEmpty)},
		{"restart", "a list: the command that starts the process again, and its arguments", r.list(&in.Restart, notEmpty)},
		{"flush", "a list: the command that empties the store, and its arguments", r.list(&in.Flush, notEmpty)},
	}
}

func notEmpty(s string) bool { return s != "" }

func isGateway(s string) bool {
	u, err := url.Parse(s)
	return err == nil && isURL("ws", "wss")(s) && u.Path == "" && u.RawQuery == ""
}

func isHTTP(s string) bool {
	u, err := url.Parse(s)
	return err == nil && isURL("http", "https")(s) && u.Path == "" && u.RawQuery == ""
}

func isURL(schemes ...string) func(string) bool {
	return func(s string) bool {
		u, err := url.Parse(s)
		return err == nil && slices.Contains(schemes, u.Scheme) && u.Hostname() != "" && u.User == nil
	}
}

func setKey(f *File, s string) (err error) {
	f.Key, err = wire.ParseKey(strings.TrimSpace(s))
	return err
}

func setCA(f *File, s string) error {
	f.CA, f.CAPEM = x509.NewCertPool(), []byte(s)
	if !f.CA.AppendCertsFromPEM([]byte(s)) {
		return errors.New("it has no certificate in PEM")
	}
	return nil
}

func setTokens(f *File, s string) error {
	f.Tokens = map[Device]string{}
	n := 0
	for line := range strings.Lines(s) {
		n++
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if len(words) != 3 {
			return fmt.Errorf("line %d has %d words, not 3", n, len(words))
		}
		user, err := strconv.ParseUint(words[0], 10, 64)
		if err != nil {
			return fmt.Errorf("line %d: user %q is no number", n, words[0])
		}
		device, err := strconv.ParseUint(words[1], 10, 32)
		if err != nil {
			return fmt.Errorf("line %d: device %q is no number", n, words[1])
		}
		f.Tokens[Device{user, uint32(device)}] = words[2]
	}
	return nil
}

// consistent checks what concerns several fields.
func (r *reader) consistent(f *File) {
	if len(f.Gateways) == 0 && r.places["gateways"] == nil {
		r.fail("gateways", "nothing", "a list of ws://host:port or wss://host:port", "required")
	}
	r.oneOf("for tokens", true, "key", "key_env", "key_file", "tokens_file")
	r.oneOf("for users and groups", false, "provisioning_url", "provisioned")
	r.oneOf("for the administrator", false, "provisioning_token_env", "provisioning_token_file")
	if f.Provisioning != "" && f.Tokens != nil && f.AdminToken == "" {
		r.fail("provisioning_url", "no key to sign an administrator's token", "provisioning_token_env or provisioning_token_file beside tokens_file", "")
	}
	metrics := slices.ContainsFunc(f.Instances, func(in Instance) bool { return in.Metrics != "" })
	if f.CPU && !metrics {
		r.fail("cpu", "true without a metrics endpoint", "true where instances have metrics", "")
	}
	for i, in := range f.Instances {
		path := fmt.Sprintf("instances[%d]", i)
		if in.Role == "" && r.places[path+".role"] == nil {
			r.fail(path+".role", "nothing", "one of "+strings.Join(instanceRoles(), ", "), "required")
		}
		if (in.Kill == nil) != (in.Restart == nil) {
			r.fail(path, "only one of kill and restart", "both or neither", "")
		}
		for _, before := range f.Instances[:i] {
			if in.Role != "" && before.Role == in.Role && before.Instance == in.Instance {
				r.fail(path, fmt.Sprintf("%s/%d again", in.Role, in.Instance), "each instance once", "")
			}
		}
	}
	r.allowed(f)
}

// allowed refuses hosts of other machines unless the file allows load on them.
func (r *reader) allowed(f *File) {
	if f.AllowLoad {
		return
	}
	check := func(path, address string) {
		u, err := url.Parse(address)
		if err != nil || address == "" || loopback(u.Hostname()) {
			return
		}
		r.fail(path, strconv.Quote(u.Hostname()), "hosts of this machine (127.0.0.0/8, ::1, localhost)",
			"if that system may be loaded and written to, say allow_load: true")
	}
	for i, g := range f.Gateways {
		check(fmt.Sprintf("gateways[%d]", i), g)
	}
	check("provisioning_url", f.Provisioning)
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}
