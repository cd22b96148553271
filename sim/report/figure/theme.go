// Package figure draws the plots of a run report with gonum/plot: plain data
// in, SVG and PNG out, each in a light and a dark theme and in a wide and a
// narrow layout. It owns colours, type sizes and layout, so that all figures
// of the project look alike. It knows nothing of run folders and may import
// nothing else of this module.
package figure

import (
	"fmt"
	"image/color"
)

// Ink is a colour by what it is used for; a theme says what it looks like. The
// series colours follow Okabe and Ito, whose hues stay apart for people with
// any of the common colour vision deficiencies, with the lightness changed so
// that each has a contrast of at least 3 to both backgrounds.
type Ink int

// The inks of a theme.
const (
	Back Ink = iota
	Text
	Muted
	Grid
	Band
	BandGated
	Blue
	Orange
	Green
	Purple
	Vermilion
	Sky
	Grey
	Pale
	inks
)

// Theme gives each ink its colour.
type Theme struct {
	Name    string
	colours [inks]color.RGBA
}

// Light is for paper and light pages.
func Light() Theme {
	return Theme{Name: "light", colours: [inks]color.RGBA{
		Back: hex(0xFEFFFF), Text: hex(0x1A2028), Muted: hex(0x57606B), Grid: hex(0xE1E5EA), Band: hex(0xF3F5F8), BandGated: hex(0xE3EEFA),
		Blue: hex(0x0B62A8), Orange: hex(0xCF7B00), Green: hex(0x00855A), Purple: hex(0xAB4E93), Vermilion: hex(0xC6420C),
		Sky: hex(0x3E9FD0), Grey: hex(0x7B8490), Pale: hex(0xC3C9D1),
	}}
}

// Dark is for dark pages.
func Dark() Theme {
	return Theme{Name: "dark", colours: [inks]color.RGBA{
		Back: hex(0x11161C), Text: hex(0xE8EBEF), Muted: hex(0xA3ACB8), Grid: hex(0x2B333D), Band: hex(0x171D25), BandGated: hex(0x1B2B3E),
		Blue: hex(0x4E9FEA), Orange: hex(0xEFAE3A), Green: hex(0x36BE91), Purple: hex(0xDC92C6), Vermilion: hex(0xFB7F4B),
		Sky: hex(0x94D8F6), Grey: hex(0x8E97A3), Pale: hex(0x4A545F),
	}}
}

func hex(v uint32) color.RGBA {
	return color.RGBA{R: uint8(v >> 16), G: uint8(v >> 8), B: uint8(v), A: 0xFF}
}

func (t Theme) of(i Ink) color.RGBA { return t.colours[i] }

// name is the ink's name in a style sheet.
func (i Ink) name() string {
	return [inks]string{"back", "text", "muted", "grid", "band", "gated", "blue", "orange", "green", "purple", "vermilion", "sky", "grey", "pale"}[i]
}

func hexString(c color.RGBA) string { return fmt.Sprintf("#%02X%02X%02X", c.R, c.G, c.B) }

// CSS is the theme as custom properties (--fig-blue: #0B62A8; ...), what SVGs
// made by Inline refer to.
func (t Theme) CSS() string {
	s := ""
	for i := range inks {
		s += fmt.Sprintf("--fig-%s:%s;", i.name(), hexString(t.colours[i]))
	}
	return s
}

// Hex is one colour of the theme as #RRGGBB.
func (t Theme) Hex(i Ink) string { return hexString(t.colours[i]) }
