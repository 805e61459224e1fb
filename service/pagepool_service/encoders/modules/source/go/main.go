// Go's own compress/gzip, as docker, containerd, buildkit, kaniko, ko and crane call it.
package main

import (
	"compress/gzip"
	"io"
)

func newEncoder(kind string, level int, to io.Writer) (io.WriteCloser, error) {
	if kind != "gzip" {
		return nil, errKind
	}
	return gzip.NewWriterLevel(to, level)
}
