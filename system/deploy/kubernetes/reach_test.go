package kubernetes_test

import (
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"throng/system"
)

// ports of what is no role. An overlay can add those of a proxy in front of one.
var ports = map[string]int{"kafka": 9092, "mysql": 3306, "redis": 6379, "provider": 443, "s3": 443}

const portNames = 53

// checkReach: the network policies say what system.Reaches says.
func (o *objects) checkReach(t *testing.T) {
	seen := 0
	for _, p := range o.policies {
		role, err := system.ParseRole(strings.TrimPrefix(p.Name, "throng-"))
		if err != nil {
			continue // throng-deny
		}
		seen++
		want := system.Reaches(role)
		var roles, callers []system.Role
		var stores []int
		for _, rule := range p.Spec.Egress {
			if len(rule.To) > 0 && portIs(rule.Ports, "rpc") {
				roles = append(roles, o.roles(t, rule.To)...)
				continue
			}
			for _, port := range rule.Ports {
				if n := port.Port.IntValue(); n != portNames && len(rule.To) == 0 {
					stores = append(stores, n)
				}
			}
		}
		for _, rule := range p.Spec.Ingress {
			if portIs(rule.Ports, "rpc") {
				callers = append(callers, o.roles(t, rule.From)...)
			}
		}
		same(t, role, "reaches the roles", roles, want.Roles)
		var wantPorts []int
		for _, s := range want.Stores {
			wantPorts = append(wantPorts, ports[s])
		}
		same(t, role, "reaches the ports", stores, wantPorts)
		var wantCallers []system.Role
		for _, r := range system.Roles() {
			if slices.Contains(system.Reaches(r).Roles, role) {
				wantCallers = append(wantCallers, r)
			}
		}
		same(t, role, "is reached by", callers, wantCallers)
	}
	if seen != len(system.Roles()) {
		t.Errorf("%d roles have a network policy, of %d", seen, len(system.Roles()))
	}
}

func same[T ~string | ~int](t *testing.T, role system.Role, what string, got, want []T) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s %s %v by its network policy, %v by its profile", role, what, got, want)
	}
}

func portIs(ports []networkingv1.NetworkPolicyPort, name string) bool {
	return len(ports) == 1 && ports[0].Port.StrVal == name
}

// roles returns whose pods the peers of a rule select.
func (o *objects) roles(t *testing.T, peers []networkingv1.NetworkPolicyPeer) (out []system.Role) {
	t.Helper()
	for _, peer := range peers {
		sel, err := metav1.LabelSelectorAsSelector(peer.PodSelector)
		if err != nil {
			t.Fatal(err)
		}
		for name, pod := range o.pods {
			if sel.Matches(labels.Set(pod.Labels)) {
				out = append(out, system.Role(name))
			}
		}
	}
	return out
}

// TestTLS: with the component each pod has the certificate of its role.
func TestTLS(t *testing.T) {
	o := decode(t, render(t, "external-tls"))
	if len(o.pods) != len(system.Roles()) {
		t.Fatalf("%d workloads", len(o.pods))
	}
	for name, pod := range o.pods {
		found := false
		for _, v := range pod.Spec.Volumes {
			found = found || v.Name == "tls" && v.Secret != nil && v.Secret.SecretName == "throng-tls-"+name
		}
		mounts := pod.Spec.Containers[0].VolumeMounts
		if last := mounts[len(mounts)-1]; !found || last.Name != "tls" || !last.ReadOnly || last.MountPath != "/etc/throng-tls" {
			t.Errorf("%s: no certificate, mounts %v", name, mounts)
		}
	}
}
