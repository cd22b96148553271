package figure

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Layout is a size with the type that fits it. Lengths are points: 0.75 pt is
// one CSS pixel, so a wide figure is 800 pixels across.
type Layout struct {
	Name          string
	Width, Height vg.Length
	narrow        bool
}

// Wide fits a page or a slide, and stays readable at half its size.
func Wide() Layout { return Layout{Name: "wide", Width: 600, Height: 330} }

// Narrow fits the width of a phone.
func Narrow() Layout { return Layout{Name: "narrow", Width: 282, Height: 300, narrow: true} }

// Figure is one plot, drawn anew for each theme and layout.
type Figure struct {
	// Name is the base of its file names.
	Name string
	// Title is what the figure shows, Subtitle the units and how to read it.
	Title, Subtitle string
	// Alt is the text for who cannot see it: its main figures in words.
	Alt string

	keys   []key
	height float64 // share of the layout's height, 1 if 0
	draw   func(s *sheet) error
}

// key is an entry of the legend.
type key struct {
	label string
	ink   Ink
	mark  mark
}

type mark int

const (
	markLine mark = iota
	markThick
	markDash
	markBox
	markDot
	markRing
)

func (f *Figure) size(l Layout) (w, h vg.Length) {
	h = l.Height
	if f.height > 0 {
		h *= vg.Length(f.height)
	}
	return l.Width, h
}

func (f *Figure) paint(c vg.CanvasSizer, t Theme, l Layout) (err error) {
	defer func() { // gonum/plot panics on ranges it cannot draw
		if r := recover(); r != nil {
			err = fmt.Errorf("figure %s: %v", f.Name, r)
		}
	}()
	dc := draw.New(c)
	s := &sheet{Canvas: dc, theme: t, layout: l}
	s.fill(Back)
	s.Canvas = draw.Crop(dc, 8, -8, 6, -8)
	s.header(f.Title, f.Subtitle, f.keys)
	if err := f.draw(s); err != nil {
		return fmt.Errorf("figure %s: %w", f.Name, err)
	}
	return nil
}

// SVG is the figure with the theme's colours painted in, for use as a file.
func (f *Figure) SVG(t Theme, l Layout) ([]byte, error) {
	w, h := f.size(l)
	c := vgsvg.New(w, h)
	if err := f.paint(c, t, l); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("figure %s: %w", f.Name, err)
	}
	return []byte(fonts.Replace(b.String())), nil
}

// fonts names the families that have the widths of the font the layout was made with.
var fonts = strings.NewReplacer("font-family:Liberation Sans", "font-family:'Liberation Sans',Arial,Helvetica,sans-serif", "font-variant:none;", "",
	"font-style:normal;", "", "font-weight:normal;", "", "font-variant:normal;", "", ";font-style:normal", "")

var svgOpen = regexp.MustCompile(`(?s)^.*?<svg[^>]*>`)

// Inline is the figure for use inside an HTML page: its colours are the page's
// custom properties --fig-*, see Theme.CSS, and it takes the width it is given.
func (f *Figure) Inline(l Layout) (string, error) {
	t := Light()
	b, err := f.SVG(t, l)
	if err != nil {
		return "", err
	}
	w, h := f.size(l)
	open := fmt.Sprintf(`<svg class="fig %s" role="img" aria-label="%s" viewBox="0 0 %g %g" xmlns="http://www.w3.org/2000/svg">`,
		l.Name, escape.Replace(f.Title+". "+f.Alt), w.Points(), h.Points())
	s := svgOpen.ReplaceAllLiteralString(string(b), open)
	var pairs []string
	for i := range inks {
		pairs = append(pairs, t.Hex(i), "var(--fig-"+i.name()+")")
	}
	return strings.NewReplacer(pairs...).Replace(s), nil
}

var escape = strings.NewReplacer("&", "&amp;", `"`, "&quot;", "<", "&lt;", ">", "&gt;")

// PNG is the figure as a picture of twice the pixels of its layout.
func (f *Figure) PNG(t Theme, l Layout) ([]byte, error) {
	w, h := f.size(l)
	c := vgimg.NewWith(vgimg.UseWH(w, h), vgimg.UseDPI(192))
	if err := f.paint(c, t, l); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err := (vgimg.PngCanvas{Canvas: c}).WriteTo(&b); err != nil {
		return nil, fmt.Errorf("figure %s: %w", f.Name, err)
	}
	return b.Bytes(), nil
}
