package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
)

// How an encoder is run, one process of it for one stream:
//
//	stream KIND:LEVEL            standard input compressed to standard output
//	probe  KIND:LEVEL...         all of standard input compressed by each; a u32, little-endian, before each result
//
// Exit code 2 says that there is no such encoder, 1 that reading or writing failed.

const bufferSize = 256 << 10

var errKind = errors.New("no such encoder")

// What hides the other methods of standard input and output: io.Copy would have them copy in their own ways.
type source struct{ io.Reader }
type sink struct{ io.Writer }

func open(name string, to io.Writer) (io.WriteCloser, error) {
	kind, level, found := strings.Cut(name, ":")
	number, err := strconv.Atoi(level)
	if !found || err != nil {
		return nil, errKind
	}
	return newEncoder(kind, number, to)
}

func compress(name string, from io.Reader, to io.Writer) int {
	encoder, err := open(name, to)
	if err != nil {
		return 2
	}
	if _, err = io.CopyBuffer(sink{encoder}, source{from}, make([]byte, bufferSize)); err != nil {
		return 1
	}
	if encoder.Close() != nil {
		return 1
	}
	return 0
}

func probe(names []string) int {
	plain, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 1
	}
	for _, name := range names {
		var made bytes.Buffer
		if code := compress(name, bytes.NewReader(plain), &made); code != 0 {
			return code
		}
		head := binary.LittleEndian.AppendUint32(nil, uint32(made.Len()))
		if _, err := os.Stdout.Write(append(head, made.Bytes()...)); err != nil {
			return 1
		}
	}
	return 0
}

func main() {
	code := 2
	switch {
	case len(os.Args) == 3 && os.Args[1] == "stream":
		code = compress(os.Args[2], os.Stdin, os.Stdout)
	case len(os.Args) > 2 && os.Args[1] == "probe":
		code = probe(os.Args[2:])
	}
	os.Exit(code)
}
