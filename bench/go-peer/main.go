// The usual design in Go: net/http, go-redis with its pool, one SADD for each request. Written as one would for
// production: timeouts, a validated id, a graceful stop.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net/http"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

type server struct {
	redis    *redis.Client
	window   int64
	expiring atomic.Int64
}

func (s *server) accept(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header["Content-Type"] = []string{"text/plain; charset=utf-8"}
	header["Cache-Control"] = []string{"no-store"}
	id, err := strconv.ParseInt(r.URL.Query().Get("id"), 10, 64)
	if err != nil {
		answer(w, http.StatusBadRequest, "failed")
		return
	}
	now := time.Now().Unix()
	start := now - now%s.window
	key := "go:ids:" + strconv.FormatInt(s.window, 10) + ":" + strconv.FormatInt(start, 10)
	added, err := s.redis.SAdd(r.Context(), key, strconv.FormatInt(id, 10)).Result()
	if err != nil {
		answer(w, http.StatusServiceUnavailable, "failed")
		return
	}
	if s.expiring.Swap(start) != start {
		s.redis.Expire(r.Context(), key, 24*time.Hour)
	}
	outcome := "duplicate"
	if added == 1 {
		outcome = "new"
	}
	header["Verve-Outcome"] = []string{outcome}
	answer(w, http.StatusOK, "ok")
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

func main() {
	listen := flag.String("listen", "127.0.0.1:3000", "where to serve HTTP")
	url := flag.String("redis-url", "redis://127.0.0.1:6379", "the Redis")
	flag.Parse()
	options, err := redis.ParseURL(*url)
	if err != nil {
		log.Fatal(err)
	}
	options.DialTimeout, options.ReadTimeout, options.WriteTimeout = 500*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond
	accepts := &server{redis: redis.NewClient(options), window: 60}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/verve/accept", accepts.accept)
	site := &http.Server{Addr: *listen, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go func() {
		<-ctx.Done()
		_ = site.Shutdown(context.Background())
	}()
	if err := site.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
