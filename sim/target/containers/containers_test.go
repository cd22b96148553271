package containers

import (
	"context"
	"testing"

	"github.com/moby/moby/client"
)

func countRun(ctx context.Context, api client.APIClient, run string) (int, error) {
	mine := client.Filters{}.Add("label", labelRun+"="+run)
	list, err := api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: mine})
	if err != nil {
		return 0, err
	}
	nets, err := api.NetworkList(ctx, client.NetworkListOptions{Filters: mine})
	return len(list.Items) + len(nets.Items), err
}

func helperHarness() int         { return 1 }
func helperGenerator(string) int { return 1 }

func TestStart(t *testing.T) {
	needDocker(t)
	d := start(t, testConfig(t))
	s, err := d.Sample()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range s {
		t.Logf("%+v", x)
	}
}
