// The compressors of github.com/klauspost, as podman, buildah, skopeo and others call them.
package main

import (
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
)

// What pgzip cuts a stream into, each piece compressed by itself: its default.
const pieceSize = 1 << 20

func newEncoder(kind string, level int, to io.Writer) (io.WriteCloser, error) {
	switch kind {
	case "gzip":
		return gzip.NewWriterLevel(to, level)
	case "pgzip":
		writer, err := pgzip.NewWriterLevel(to, level)
		if err != nil {
			return nil, err
		}
		return writer, writer.SetConcurrency(pieceSize, 1)
	case "zstd":
		speed := zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level))
		return zstd.NewWriter(to, speed, zstd.WithEncoderConcurrency(1))
	}
	return nil, errKind
}
