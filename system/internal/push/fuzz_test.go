package push

import (
	"bytes"
	"testing"
)

// FuzzLetters: whatever a file of dead letters holds, its reader ends, and reads no
// more of them than there are lines.
func FuzzLetters(f *testing.F) {
	f.Add([]byte("{\"user\":1}\n{\"user\":2}\n{\"us"))
	f.Add(bytes.Repeat([]byte("x"), 2*maxLetter))
	f.Add([]byte("\n\n[]\nnull\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		n := 0
		if err := scanLetters(bytes.NewReader(file), func(*DeadLetter) { n++ }); err != nil {
			t.Fatal(err)
		}
		if lines := bytes.Count(file, []byte("\n")) + 1; n > lines {
			t.Fatalf("%d letters on %d lines", n, lines)
		}
	})
}
