package media_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"throng/system/internal/media"
	"throng/system/internal/media/mediatest"
	"throng/system/wire"
)

// FuzzRequest sends what clients may write into the path and the headers of a
// request, over a socket. No request is the service's fault (500), nobody else
// gets a byte of the object, and what its owner gets is a part of it.
func FuzzRequest(f *testing.F) {
	secret := mediatest.Content(7, 3000)
	f.Add(uint8(0), "", "bytes=10-20", "", "", "", "")
	f.Add(uint8(0), "", "bytes=-1,0-0, 5-", "", "", "", "")
	f.Add(uint8(0), "", "bytes=99999999999999999999-", "", "", "", "")
	f.Add(uint8(1), "/link", "", "", "", "", "")
	f.Add(uint8(2), "", "", "kind aW1hZ2U=,sha256 "+strings.Repeat("MDAw", 22), "10", "", "")
	f.Add(uint8(2), "", "", "kind !!!,,sha256", "-1", "", "")
	f.Add(uint8(3), "", "", "", "18446744073709551616", "application/offset+octet-stream", "x")
	f.Add(uint8(4), "%2f..%00", "", "", "", "", "")
	r := start(f, media.Limits{})
	id := r.upload(1, secret)
	client := r.client("127.0.0.1")
	tokens := []string{r.token(1), r.token(2)}
	f.Fuzz(func(t *testing.T, what uint8, more, span, meta, number, kind, body string) {
		method, path := "GET", at(id)+more
		switch what % 8 {
		case 1:
			method = "POST"
		case 2:
			method, path = "POST", wire.MediaUploadsPath+more
		case 3:
			method, path = "PATCH", wire.MediaUploadsPath+id.String()+more
		case 4:
			path = wire.MediaPath + more
		case 5:
			method, path = "HEAD", wire.MediaUploadsPath+more
		case 6:
			method, path = "DELETE", wire.MediaUploadsPath+more
		case 7:
			method = "OPTIONS"
		}
		for who, token := range tokens {
			req, err := http.NewRequestWithContext(t.Context(), method, r.base+path, strings.NewReader(body))
			if err != nil {
				t.Skip("no request")
			}
			req.Header = http.Header{"Authorization": {token}, "Tus-Resumable": {"1.0.0"}}
			for name, v := range map[string]string{"Range": span, "If-Range": kind, "Upload-Metadata": meta, "Upload-Length": number, "Upload-Offset": number,
				"Content-Type": kind, wire.MediaGrantHeader: meta, "Upload-Concat": kind, "X-HTTP-Method-Override": kind} {
				if v != "" {
					req.Header.Set(name, v)
				}
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Skip("not HTTP: the client does not write it")
			}
			data, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			if resp.StatusCode == http.StatusInternalServerError {
				t.Fatalf("%s %s %v: %s %s", method, path, req.Header, resp.Status, data)
			}
			if who == 1 && bytes.Contains(data, secret[:32]) {
				t.Fatalf("%s %s %v: somebody else has it", method, path, req.Header)
			}
			if who == 0 && resp.StatusCode == http.StatusPartialContent {
				checkPart(t, resp, data, secret)
			}
		}
	})
}

// checkPart holds a part of the object to what the answer says of it.
func checkPart(t *testing.T, resp *http.Response, data, whole []byte) {
	t.Helper()
	var from, to, size int
	said := resp.Header.Get("Content-Range")
	if _, err := fmt.Sscanf(said, "bytes %d-%d/%d", &from, &to, &size); err != nil {
		if !strings.HasPrefix(resp.Header.Get("Content-Type"), "multipart/byteranges") {
			t.Fatalf("a part without a place: %v", resp.Header)
		}
		return
	}
	if size != len(whole) || from > to || to >= size || !bytes.Equal(data, whole[from:to+1]) || resp.Header.Get("Content-Length") != strconv.Itoa(len(data)) {
		t.Fatalf("%s: %d bytes, of an object of %d", said, len(data), len(whole))
	}
}
