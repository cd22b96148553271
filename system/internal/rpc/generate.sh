#!/bin/sh
# Generates the Go code of the .proto files. Run from the project's root as
# `make proto`; needs buf, protoc-gen-go, protoc-gen-go-grpc and
# protoc-gen-go-vtproto on PATH (`make proto-tools` installs them).
set -eu
buf generate --path system --config '{"version":"v2"}' . --template '{"version":"v2","plugins":[
  {"local":"protoc-gen-go","out":".","opt":["module=throng"]},
  {"local":"protoc-gen-go-grpc","out":".","opt":["module=throng"]},
  {"local":"protoc-gen-go-vtproto","out":".","opt":["module=throng","features=marshal+unmarshal+size"]}]}'
# vtproto has local variables named wire, which hide the package of that name.
sed -i -e 's/\bwire\.\([A-Z]\)/chatpb.\1/g' -e 's/^\twire "throng/\tchatpb "throng/' system/internal/rpc/rpc_vtproto.pb.go
