package external

import "testing"

// TestKubernetesTarget: the target that the manifests give to the load is a file
// that throng reads.
func TestKubernetesTarget(t *testing.T) {
	f, err := Load("../../../system/deploy/kubernetes/agents/target.yaml", func(name string) string {
		return map[string]string{"THRONG_KEY": "Y2hhbmdlIG1lOiBvcGVuc3NsIHJhbmQgLWJhc2U2NCAzMg=="}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Gateways) == 0 {
		t.Errorf("read %+v", f)
	}
}
