package system_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"throng/system"
)

// TestReachIsDocumented: ARCHITECTURE.md has the profile of each role.
func TestReachIsDocumented(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range system.Roles() {
		at := system.Reaches(r)
		var roles []string
		for _, c := range at.Roles {
			roles = append(roles, string(c))
		}
		row := strings.ReplaceAll(fmt.Sprintf("| %s | %s | %s |", r, strings.Join(roles, ", "), strings.Join(at.Stores, ", ")), "|  |", "| |")
		if !strings.Contains(string(doc), row+"\n") {
			t.Errorf("ARCHITECTURE.md does not say %s", row)
		}
	}
}
