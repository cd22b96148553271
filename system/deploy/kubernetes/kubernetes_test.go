// Package kubernetes_test checks the manifests of this folder without a cluster:
// that they render, that Kubernetes would read every field, and that they agree
// with one another and with the topology they come with.
package kubernetes_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"throng/system"
)

// operatorGroups are the API groups of the operators' resources: their schemas are
// not here, so only the golden file holds them.
var operatorGroups = map[string]bool{"kafka.strimzi.io": true, "mysql.oracle.com": true, "redis.redis.opstreelabs.in": true}

func TestOverlays(t *testing.T) {
	for _, overlay := range []string{"external", "operators"} {
		t.Run(overlay, func(t *testing.T) {
			m := render(t, overlay)
			compareGolden(t, overlay, m)
			o := decode(t, m)
			o.checkPods(t)
			o.checkSelectors(t)
			o.checkTopology(t)
			o.checkReach(t)
		})
	}
}

// TestLoad: the leader waits for as many agents as the Job has pods, at the port that
// they dial.
func TestLoad(t *testing.T) {
	m := render(t, "agents")
	compareGolden(t, "agents", m)
	o := decode(t, m)
	leader, agents := o.jobs["load"], o.jobs["load-agents"]
	if leader == nil || agents == nil || *agents.Spec.CompletionMode != batchv1.IndexedCompletion || *agents.Spec.Completions != *agents.Spec.Parallelism {
		t.Fatal("no leader, or no Indexed Job whose agents run all at once")
	}
	args := strings.Join(leader.Spec.Template.Spec.Containers[0].Args, " ")
	port := o.services["load"].Spec.Ports[0].Port
	for _, want := range []string{fmt.Sprintf("--agents-elsewhere %d", *agents.Spec.Parallelism), fmt.Sprintf("--listen 0.0.0.0:%d", port)} {
		if !strings.Contains(args, want) {
			t.Errorf("the leader runs %q, without %s", args, want)
		}
	}
	if join := strings.Join(agents.Spec.Template.Spec.Containers[0].Args, " "); !strings.HasSuffix(join, fmt.Sprintf("nats://load:%d", port)) {
		t.Errorf("the agents run %q", join)
	}
}

// TestStrict: the decoder that the other tests rely on refuses what Kubernetes
// would drop in silence.
func TestStrict(t *testing.T) {
	if _, _, err := decoder(t).Decode([]byte("apiVersion: v1\nkind: Service\nspec: {ports: [{port: 1, tragetPort: 2}]}\n"), nil, nil); err == nil {
		t.Error("a field that does not exist was accepted")
	}
}

func render(t *testing.T, overlay string) resmap.ResMap {
	t.Helper()
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), overlay)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func compareGolden(t *testing.T, overlay string, m resmap.ResMap) {
	t.Helper()
	got, err := m.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join("golden", overlay+".yaml")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s renders to something else than %s; if that is meant: UPDATE=1 go test ./system/deploy/kubernetes", overlay, name)
	}
}

func decoder(t *testing.T) runtime.Decoder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, autoscalingv2.AddToScheme, policyv1.AddToScheme, networkingv1.AddToScheme, batchv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
}

// objects are the manifests of an overlay.
type objects struct {
	pods     map[string]*corev1.PodTemplateSpec // by workload
	jobs     map[string]*batchv1.Job
	stateful map[string]*appsv1.StatefulSet
	deployed map[string]*appsv1.Deployment
	services map[string]*corev1.Service
	scalers  []*autoscalingv2.HorizontalPodAutoscaler
	budgets  []*policyv1.PodDisruptionBudget
	policies []*networkingv1.NetworkPolicy
	topology []byte
}

func decode(t *testing.T, m resmap.ResMap) *objects {
	t.Helper()
	o := &objects{pods: map[string]*corev1.PodTemplateSpec{}, jobs: map[string]*batchv1.Job{}, stateful: map[string]*appsv1.StatefulSet{},
		deployed: map[string]*appsv1.Deployment{}, services: map[string]*corev1.Service{}}
	d := decoder(t)
	for _, r := range m.Resources() {
		if operatorGroups[r.GetGvk().Group] {
			continue
		}
		data, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		obj, _, err := d.Decode(data, nil, nil)
		if err != nil {
			t.Errorf("%s %s: %v", r.GetKind(), r.GetName(), err)
			continue
		}
		switch k := obj.(type) {
		case *appsv1.StatefulSet:
			o.stateful[k.Name], o.pods[k.Name] = k, &k.Spec.Template
		case *appsv1.Deployment:
			o.deployed[k.Name], o.pods[k.Name] = k, &k.Spec.Template
		case *batchv1.Job:
			o.jobs[k.Name] = k
		case *corev1.Service:
			o.services[k.Name] = k
		case *autoscalingv2.HorizontalPodAutoscaler:
			o.scalers = append(o.scalers, k)
		case *policyv1.PodDisruptionBudget:
			o.budgets = append(o.budgets, k)
		case *networkingv1.NetworkPolicy:
			o.policies = append(o.policies, k)
		case *corev1.Secret:
			if raw, ok := k.Data["topology.json"]; ok {
				o.topology = raw
			}
		case *corev1.Namespace, *corev1.ConfigMap:
		default:
			t.Errorf("%T %s: nothing here checks it", obj, r.GetName())
		}
	}
	return o
}

// checkPods: every pod can be probed, has bounds, and no right it does not need.
func (o *objects) checkPods(t *testing.T) {
	if len(o.pods) != len(system.Roles()) {
		t.Errorf("%d workloads for %d roles", len(o.pods), len(system.Roles()))
	}
	for name, p := range o.pods {
		c := p.Spec.Containers[0]
		if c.ReadinessProbe == nil || c.LivenessProbe == nil || c.StartupProbe == nil {
			t.Errorf("%s: a probe is missing", name)
		}
		if c.Resources.Requests.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() || c.Resources.Limits.Memory().IsZero() {
			t.Errorf("%s: no requests or no memory limit", name)
		}
		sc := c.SecurityContext
		if sc == nil || sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation || sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem {
			t.Errorf("%s: has rights it does not need", name)
		}
		if p.Spec.SecurityContext == nil || p.Spec.SecurityContext.RunAsNonRoot == nil || !*p.Spec.SecurityContext.RunAsNonRoot {
			t.Errorf("%s: may run as root", name)
		}
		if p.Spec.AutomountServiceAccountToken == nil || *p.Spec.AutomountServiceAccountToken {
			t.Errorf("%s: has a token of the cluster", name)
		}
	}
}

// checkSelectors: whatever selects pods finds some, and what scales itself has
// no number of replicas that an apply would set back.
func (o *objects) checkSelectors(t *testing.T) {
	finds := func(what string, s *metav1.LabelSelector) {
		sel, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		for _, p := range o.pods {
			if sel.Matches(labels.Set(p.Labels)) {
				return
			}
		}
		t.Errorf("%s selects no pod: %v", what, sel)
	}
	for name, s := range o.services {
		finds("service "+name, &metav1.LabelSelector{MatchLabels: s.Spec.Selector})
		for _, p := range s.Spec.Ports {
			if !o.named(s.Spec.Selector, p.TargetPort.StrVal, p.Port) {
				t.Errorf("service %s: no pod has a port %s with number %d", name, p.TargetPort.StrVal, p.Port)
			}
		}
	}
	for _, b := range o.budgets {
		finds("budget "+b.Name, b.Spec.Selector)
	}
	for _, n := range o.policies {
		finds("policy "+n.Name, &n.Spec.PodSelector)
	}
	for name := range o.pods {
		covered := false
		for _, b := range o.budgets {
			covered = covered || b.Name == "throng-"+name
		}
		if !covered {
			t.Errorf("%s has no disruption budget", name)
		}
	}
	for _, h := range o.scalers {
		d := o.deployed[h.Spec.ScaleTargetRef.Name]
		if d == nil {
			t.Errorf("autoscaler %s scales nothing", h.Name)
		} else if d.Spec.Replicas != nil {
			t.Errorf("%s has a number of replicas and an autoscaler", d.Name)
		}
	}
	if len(o.scalers) != len(o.deployed) {
		t.Errorf("%d autoscalers for %d deployments", len(o.scalers), len(o.deployed))
	}
}

// named reports whether the selected pods have that port.
func (o *objects) named(selector map[string]string, name string, number int32) bool {
	for _, p := range o.pods {
		if !labels.SelectorFromSet(selector).Matches(labels.Set(p.Labels)) {
			continue
		}
		for _, port := range p.Spec.Containers[0].Ports {
			if port.Name == name && port.ContainerPort == number {
				return true
			}
		}
	}
	return false
}

// checkTopology: the topology is one that chatd accepts, it has as many instances
// as there are pods, at the names that pods have, and a pod is given the time
// that its role takes to stop.
func (o *objects) checkTopology(t *testing.T) {
	cfg, err := system.ParseConfig("topology.json", o.topology)
	if err != nil {
		t.Fatal(err)
	}
	at := func(set string, i int, addr string) {
		s := o.stateful[set]
		host, port, err := net.SplitHostPort(addr)
		if err != nil || host != fmt.Sprintf("%s-%d.%s", set, i, s.Spec.ServiceName) || o.services[s.Spec.ServiceName] == nil {
			t.Errorf("%s is not where %s-%d is", addr, set, i)
		}
		n, _ := strconv.Atoi(port)
		found := false
		for _, p := range s.Spec.Template.Spec.Containers[0].Ports {
			found = found || int(p.ContainerPort) == n
		}
		if !found {
			t.Errorf("%s: the pod has no port %d", addr, n)
		}
	}
	count := func(set string, n int) {
		if s := o.stateful[set]; s == nil || int(*s.Spec.Replicas) != n {
			t.Errorf("%s: the topology has %d", set, n)
		}
	}
	count("message", len(cfg.Messages))
	for i, m := range cfg.Messages {
		at("message", i, m.RPC)
		at("message", i, m.Debug)
	}
	count("group", len(cfg.Groups))
	for i, g := range cfg.Groups {
		at("group", i, g.RPC)
		at("group", i, g.HTTP)
	}
	count("inbox", len(cfg.Inboxes))
	for i, in := range cfg.Inboxes {
		at("inbox", i, in.RPC)
	}
	count("push", len(cfg.Pushes))
	for i, p := range cfg.Pushes {
		at("push", i, p.RPC)
	}
	if len(cfg.Gateways) != 1 || len(cfg.Fanouts) != 1 || len(cfg.Medias) != 1 {
		t.Error("gateways, fan-outs and media instances share one entry: their number is the autoscaler's")
	}
	o.checkGrace(t, time.Duration(cfg.Settings.DrainTimeout))
	if key, err := base64.StdEncoding.DecodeString(cfg.Key); err != nil || !bytes.HasPrefix(key, []byte("change me")) {
		t.Error("the key of an example must say that it is to be changed")
	}
}

// checkGrace: Kubernetes does not kill a gateway that still moves its clients.
func (o *objects) checkGrace(t *testing.T, drain time.Duration) {
	pod := o.pods["gateway"].Spec
	hook := pod.Containers[0].Lifecycle
	if hook == nil || hook.PreStop == nil || hook.PreStop.Sleep == nil || hook.PreStop.Sleep.Seconds == 0 {
		t.Fatal("gateway: nothing waits until the load balancer has let go of it")
	}
	need := time.Duration(hook.PreStop.Sleep.Seconds)*time.Second + drain
	if grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second; drain == 0 || grace < need+10*time.Second {
		t.Errorf("gateway: %s to stop, needs %s and room", grace, need)
	}
}
