package system

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// LoadConfig reads and checks a topology file. Errors say the file, the line
// where it can be known, the field and what is allowed.
func LoadConfig(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("topology: %w", err)
	}
	return ParseConfig(path, data)
}

// ParseConfig reads and checks a topology; name stands for it in errors. A
// field that does not exist is an error.
func ParseConfig(name string, data []byte) (Config, error) {
	var c Config
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Config{}, explainJSON(name, data, dec.InputOffset(), err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%s:%d: something follows the topology", name, lineAt(data, dec.InputOffset()))
	}
	if err := c.Check(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// explainJSON gives a decoding error its place in the file.
func explainJSON(name string, data []byte, at int64, err error) error {
	var syntax *json.SyntaxError
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("%s:%d: not JSON: %w", name, lineAt(data, syntax.Offset), err)
	case errors.As(err, &wrongType):
		return fmt.Errorf("%s:%d: field %s: %s where a %s belongs", name, lineAt(data, wrongType.Offset), wrongType.Field, wrongType.Value, wrongType.Type)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("%s: ends too early", name)
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		if i := bytes.Index(data, []byte(field)); i >= 0 {
			return fmt.Errorf("%s:%d: there is no field %s", name, lineAt(data, int64(i)), field)
		}
	}
	return fmt.Errorf("%s:%d: %w", name, lineAt(data, at), err)
}

func lineAt(data []byte, offset int64) int {
	return 1 + bytes.Count(data[:min(int(offset), len(data))], []byte("\n"))
}
