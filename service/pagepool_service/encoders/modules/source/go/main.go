// Go's own compress/gzip, as docker, containerd, buildkit, kaniko, ko and crane call it.
package main

import (
	"compress/gzip"
	"io"
)

func firstWrite(string) int64 { return 0 }

func newEncoder(kind string, level int, to io.Writer) (io.WriteCloser, error) {
	if kind != "gzip" {
		return nil, errKind
	}
	return gzip.NewWriterLevel(to, level)
}
