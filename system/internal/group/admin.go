package group

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"throng/system/wire"
)

const (
	// maxAdminBytes bounds one message of the provisioning API; a body may
	// hold any number of them.
	maxAdminBytes = 8 << 20
	// adminParallel bounds the messages of one body worked on at a time.
	adminParallel = 4

	typeProto = "application/x-protobuf"
	typeJSON  = "application/json"
)

// Admin returns the provisioning API, see admin.proto.
func (s *Service) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /admin/v1/provision", s.admin(s.serveProvision))
	mux.HandleFunc("POST /admin/v1/members", s.admin(s.serveMembers))
	return mux
}

// admin checks the token and the format, and writes what serve returns.
func (s *Service) admin(serve func(r *http.Request, json bool) (proto.Message, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			http.Error(w, "bearer token needed", http.StatusUnauthorized)
			return
		}
		claims, err := s.keys.Verify(token)
		if err != nil {
			http.Error(w, "token refused", http.StatusUnauthorized)
			return
		}
		if !claims.Admin {
			http.Error(w, "the token is not an administrator's", http.StatusForbidden)
			return
		}
		format, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
		if format != typeProto && format != typeJSON {
			http.Error(w, "content type "+typeProto+" or "+typeJSON+" needed", http.StatusUnsupportedMediaType)
			return
		}
		res, err := serve(r, format == typeJSON)
		if err != nil {
			s.cfg.Log.Warn("provisioning", "path", r.URL.Path, "err", err)
			http.Error(w, err.Error(), httpStatus(err))
			return
		}
		var body []byte
		if format == typeJSON {
			body, err = protojson.Marshal(res)
		} else {
			body, err = proto.Marshal(res)
		}
		if err != nil {
			http.Error(w, "encode the answer", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", format)
		if _, err := w.Write(body); err != nil {
			s.cfg.Log.Debug("provisioning: the caller is gone", "err", err)
		}
	}
}

var errTooLarge = errors.New("group: a message of the body is too large")

func httpStatus(err error) int {
	if errors.Is(err, errTooLarge) {
		return http.StatusRequestEntityTooLarge
	}
	switch status.Code(statusOf(err)) {
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.NotFound:
		return http.StatusNotFound
	case codes.FailedPrecondition:
		return http.StatusConflict
	}
	return http.StatusServiceUnavailable
}

// serveProvision takes the messages of the body a few at a time. It fails at
// the first that cannot be done; what was done before stays, and the call can
// be repeated.
func (s *Service) serveProvision(r *http.Request, json bool) (proto.Message, error) {
	if json {
		var p wire.Provision
		if err := readJSON(r.Body, &p); err != nil {
			return nil, err
		}
		return s.provision(r.Context(), &p)
	}
	var users, groups atomic.Uint64
	work, ctx := errgroup.WithContext(r.Context())
	work.SetLimit(adminParallel)
	body := bufio.NewReaderSize(r.Body, 64<<10)
	var readErr error
	for ctx.Err() == nil {
		p, err := readProvision(body)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			readErr = err
			break
		}
		work.Go(func() error {
			res, err := s.provision(ctx, p)
			if err == nil {
				users.Add(res.Users)
				groups.Add(res.Groups)
			}
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	if readErr != nil {
		return nil, readErr
	}
	return &wire.ProvisionResult{Users: users.Load(), Groups: groups.Load()}, r.Context().Err()
}

// readProvision reads one length-delimited message; io.EOF means that the body
// has ended between two.
func readProvision(r *bufio.Reader) (*wire.Provision, error) {
	if _, err := r.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, fmt.Errorf("%w: read: %w", errInvalid, err)
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, fmt.Errorf("%w: length of a message: %w", errInvalid, noEOF(err))
	}
	if n > maxAdminBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errTooLarge, n, maxAdminBytes)
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, fmt.Errorf("%w: message of %d bytes: %w", errInvalid, n, noEOF(err))
	}
	p := &wire.Provision{}
	if err := p.UnmarshalVT(buf); err != nil {
		return nil, fmt.Errorf("%w: decode: %w", errInvalid, err)
	}
	return p, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (s *Service) serveMembers(r *http.Request, json bool) (proto.Message, error) {
	req := &wire.MembershipChange{}
	if json {
		if err := readJSON(r.Body, req); err != nil {
			return nil, err
		}
		return s.change(r.Context(), req)
	}
	body, err := readAll(r.Body)
	if err != nil {
		return nil, err
	}
	if err := req.UnmarshalVT(body); err != nil {
		return nil, fmt.Errorf("%w: decode: %w", errInvalid, err)
	}
	return s.change(r.Context(), req)
}

func readJSON(r io.Reader, m proto.Message) error {
	body, err := readAll(r)
	if err != nil {
		return err
	}
	if err := protojson.Unmarshal(body, m); err != nil {
		return fmt.Errorf("%w: decode: %w", errInvalid, err)
	}
	return nil
}

func readAll(r io.Reader) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, maxAdminBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%w: read: %w", errInvalid, err)
	}
	if len(body) > maxAdminBytes {
		return nil, errTooLarge
	}
	return body, nil
}

// Provision implements rpc.GroupServer.
func (s *Service) Provision(ctx context.Context, p *wire.Provision) (*wire.ProvisionResult, error) {
	res, err := s.provision(ctx, p)
	if err != nil {
		return nil, statusOf(err)
	}
	return res, nil
}
