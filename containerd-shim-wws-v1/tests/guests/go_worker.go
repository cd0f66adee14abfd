// A worker without a kit, which is built by the test that runs it: it answers with the request.
package main

import (
	"encoding/json"
	"io"
	"os"
)

func main() {
	request, err := io.ReadAll(os.Stdin)
	if err != nil {
		panic(err)
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"data":    "go " + string(request),
		"headers": map[string]string{"content-type": "text/plain"},
		"status":  200,
		"kv":      map[string]string{},
	})
}
